// The tabs that a new reader finds open. A test validates each of them against the schema, with its variables.

const tab = (query, variables) => ({ query, variables: variables && JSON.stringify(variables, null, 2) });

export default [
  tab(`# Every workflow of the project, the newest first.
# Ctrl-Enter runs what is under the cursor, Ctrl-Space completes, and the book on the left explains the schema.
query Workflows {
  workflows(first: 20) {
    totalCount
    nodes {
      id
      name
      displayName
      status
      currentVersion {
        version
        createdAt
      }
    }
  }
}
`),
  tab(
    `# Start a run. The name comes from the first tab; what the input must hold stands in the workflow's description.
# With "wait" the answer comes when the run has ended (or the time is over); leave it out to get the id at once.
mutation StartInstance($input: InstanceStartInput!) {
  instanceStart(input: $input) {
    __typename
    ... on InstanceStartPayload {
      instance {
        id
        status
        output
        error {
          code
          message
          nodeId
        }
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
    {
      input: {
        workflow: { name: "order-intake" },
        input: { order: { id: "A-0042", customer: "Ada", lines: [{ article: "lens", quantity: 2, price: 118.5 }] } },
        wait: "PT10S",
      },
    },
  ),
  tab(
    `# Everything that happens in one run: first its history, then live; ends when the run ends.
# Paste a run's id into the variables. To resume later, give the last seq as "after".
subscription InstanceEvents($id: ID!, $after: Int! = 0) {
  instanceEvents(id: $id, after: $after) {
    seq
    at
    type
    ... on NodeEvent {
      nodePath
    }
  }
}
`,
    { id: "inst-…", after: 0 },
  ),
  tab(`# The latest runs that failed, and which of their nodes did.
query FailedRuns {
  instances(first: 10, where: { status: { eq: FAILED } }) {
    nodes {
      id
      createdAt
      duration
      workflow {
        name
      }
      error {
        code
        message
        nodeId
      }
      nodeExecutions(first: 20, where: { status: { eq: FAILED } }) {
        nodes {
          path
          nodeType
          attempt
          error {
            code
            category
            message
          }
        }
      }
    }
  }
}
`),
  tab(`# All runs of the project as a live list: first what there is, then every change. Start one in another tab.
subscription LiveRuns {
  instanceChanges(first: 20) {
    changeSeq
    added {
      ...Run
    }
    updated {
      ...Run
    }
    removed
  }
}

fragment Run on Instance {
  id
  status
  duration
  progress {
    completed
    total
  }
  workflow {
    name
  }
}
`),
];
