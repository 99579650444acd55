// The little of graphql-transport-ws that one page needs: its subscriptions on one socket, taken up again when the line drops.

const WAITS = [200, 500, 1000, 2000, 5000, 10000];

/**
 * Follow subscriptions for as long as the page is open. Of each stream, `variables()` is asked at each (new) start, so
 * that it resumes where it was; `refusal` hears the errors of the operation itself, after which it is tried again, or, if
 * it is `optional`, left out.
 * `state` hears "live", "lost" and "refused" (signed out).
 */
export function follow(streams, state) {
  let failures = 0;
  const left = new Set();
  const start = () => {
    const address = new URL("/graphql", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, "graphql-transport-ws");
    let refused = false;
    const send = (message) => socket.send(JSON.stringify(message));
    socket.onopen = () => send({ type: "connection_init" });
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      const stream = streams[message.id];
      if (message.type === "connection_ack") {
        streams.forEach(({ query, variables }, id) => {
          if (!left.has(id)) send({ id: String(id), type: "subscribe", payload: { query, variables: variables() } });
        });
        state("live");
      } else if (message.type === "next") {
        failures = 0;
        stream.next(message.payload.data);
      } else if (message.type === "error") {
        stream.refusal(message.payload);
        if (stream.optional) {
          left.add(Number(message.id));
        } else {
          refused = true;
          socket.close(1000);
        }
      } else if (message.type === "complete") {
        socket.close(1000);
      } else if (message.type === "ping") {
        send({ type: "pong" });
      }
    };
    socket.onclose = ({ code }) => {
      if (code === 4403) return state("refused");
      if (!refused) state("lost");
      setTimeout(start, WAITS[Math.min(failures++, WAITS.length - 1)]);
    };
  };
  start();
}
