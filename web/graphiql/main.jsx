import { createGraphiQLFetcher } from "@graphiql/toolkit";
import { GraphiQL } from "graphiql";
import "graphiql/graphiql.css";
import { createClient } from "graphql-ws";
import { createRoot } from "react-dom/client";
import "./page.css";
import starters from "./starters.js";

const address = new URL("/graphql", location.href);
const socketAddress = new URL(address);
socketAddress.protocol = address.protocol === "https:" ? "wss:" : "ws:";

const fetcher = createGraphiQLFetcher({
  url: address.href,
  headers: { Accept: "application/graphql-response+json, application/json;q=0.9", "X-Mirrorflow-CSRF": "1" },
  // The session cookie signs the socket in; it opens with the first subscription and closes with the last.
  wsClient: createClient({ url: socketAddress.href, lazy: true, retryAttempts: 5 }),
});

createRoot(document.getElementById("graphiql")).render(
  <GraphiQL
    fetcher={fetcher}
    defaultTabs={starters}
    defaultEditorToolsVisibility="variables"
    isHeadersEditorEnabled={false}
    inputValueDeprecation
    schemaDescription
  >
    <GraphiQL.Logo>
      <a className="brand" href="/" title="The live list of runs">Mirrorflow</a>
    </GraphiQL.Logo>
  </GraphiQL>,
);
