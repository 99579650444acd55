// The tabs that a new reader finds open. A test runs each of them against the schema.

export default [
  {
    query: `# Every workflow of the project. Run with Ctrl-Enter; Ctrl-Space completes; the book on the left explains the schema.
query Workflows {
  workflows(first: 20) {
    totalCount
    nodes {
      id
      name
      status
    }
  }
}
`,
  },
  {
    query: `# Start a run. Take the id of a workflow from the first tab.
mutation StartInstance($input: InstanceStartInput!) {
  instanceStart(input: $input) {
    __typename
    ... on InstanceStartPayload {
      changeSeq
      instance {
        id
        status
      }
    }
    ... on UserError {
      code
      message
      path
    }
  }
}
`,
    variables: JSON.stringify({ input: { workflow: "wf-…", input: {} } }, null, 2),
  },
  {
    query: `# Everything that happens in a run, from its first event on; ends when the run ends.
subscription InstanceEvents($id: ID!) {
  instanceEvents(id: $id, after: 0) {
    __typename
  }
}
`,
    variables: JSON.stringify({ id: "inst-…" }, null, 2),
  },
];
