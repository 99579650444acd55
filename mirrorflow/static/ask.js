// Queries and mutations over HTTP.

import { CSRF } from "./session.js";

/** The data of one operation. Throws with the message of its first error. */
export async function ask(query, variables = {}) {
  const answer = await fetch("/graphql", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/graphql-response+json", ...CSRF },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await answer.json();
  if (errors) throw new Error(errors[0].message);
  return data;
}

/** Does what a button is for; what is refused stands in its tooltip. */
export async function send(button, text, variables) {
  button.disabled = true;
  try {
    const [{ message }] = Object.values(await ask(text, variables));
    if (message) button.title = message;
  } catch (error) {
    button.title = error.message;
  } finally {
    button.disabled = false;
  }
}
