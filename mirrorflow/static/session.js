// Signing this browser in: the token goes to the server once and comes back as a cookie that no script can read.

export const CSRF = { "X-Mirrorflow-CSRF": "1" };

/** Null when it worked, else the reason for people. */
export async function signIn(token) {
  const answer = await fetch("/session", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...CSRF },
    body: JSON.stringify({ token }),
  });
  return answer.ok ? null : (await answer.json()).message;
}

export const signOut = () => fetch("/session", { method: "DELETE", headers: CSRF });

export const signedIn = async () => (await (await fetch("/session")).json()).user !== null;

/** Uses the token of the first-start link and takes it out of the address bar; a reason where it failed. */
export async function signInByLink() {
  const address = new URL(location.href);
  const token = address.searchParams.get("token");
  if (!token) return null;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
  return signIn(token);
}
