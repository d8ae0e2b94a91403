import { defineConfig } from "vitest/config";

// The page goes where the server finds it (git-ignored, part of the wheel). Nothing is inlined: the server's CSP allows only files of its own.
export default defineConfig({
  base: "/",
  build: {
    outDir: "../src/vesalius/serve/page",
    emptyOutDir: true,
    license: { fileName: "licenses.md" },
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 4000,
  },
  server: { proxy: { "/api": "http://127.0.0.1:8421", "/open": "http://127.0.0.1:8421" } },
  test: { include: ["tests/**/*.test.ts"], environment: "node" },
});
