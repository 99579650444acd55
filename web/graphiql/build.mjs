// Bundles GraphiQL into ../../mirrorflow/static/graphiql (or the folder named on the command line).
import { build } from "esbuild";
import { copyFile, mkdir, rename, rm } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(process.argv[2] ?? join(here, "../../mirrorflow/static/graphiql"));
const fresh = `${target}.new`;

await rm(fresh, { recursive: true, force: true });
await mkdir(fresh, { recursive: true });
await build({
  entryPoints: { graphiql: join(here, "main.jsx") },
  outdir: fresh,
  bundle: true,
  splitting: true,
  chunkNames: "chunk-[hash]",
  format: "esm",
  minify: true,
  target: "es2022",
  jsx: "automatic",
  loader: { ".woff": "file", ".woff2": "file", ".ttf": "file" },
  define: { "process.env.NODE_ENV": '"production"' },
  legalComments: "linked",
  logLevel: "warning",
});
await copyFile(join(here, "index.html"), join(fresh, "index.html"));
await rm(target, { recursive: true, force: true });
await rename(fresh, target);
