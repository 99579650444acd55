import { signIn } from "./session.js";

document.getElementById("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const reason = await signIn(document.getElementById("token").value.trim());
  if (reason === null) location.reload();
  else document.getElementById("refused").textContent = reason;
});
