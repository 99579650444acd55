// The little of graphql-transport-ws that one page needs: one subscription that is taken up again when the line drops.

const WAITS = [200, 500, 1000, 2000, 5000, 10000];

/**
 * Follow a subscription for as long as the page is open.
 * `variables()` is asked at each (new) start, so that the stream resumes where it was.
 * `state` hears "live", "lost" and "refused" (signed out); `refusal` hears the errors of the operation itself.
 */
export function follow({ query, variables, next, state, refusal }) {
  let failures = 0;
  const start = () => {
    const address = new URL("/graphql", location.href);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address, "graphql-transport-ws");
    let refused = false;
    const send = (message) => socket.send(JSON.stringify(message));
    socket.onopen = () => send({ type: "connection_init" });
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "connection_ack") {
        send({ id: "1", type: "subscribe", payload: { query, variables: variables() } });
        state("live");
      } else if (message.type === "next") {
        failures = 0;
        next(message.payload.data);
      } else if (message.type === "error") {
        refused = true;
        refusal(message.payload);
        socket.close(1000);
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
