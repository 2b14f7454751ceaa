
// Stands at the end of each program: runs its cases and prints what came of each.

const told = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    told[name] = { result: (await run()) ?? null };
  } catch (error) {
    told[name] = { error: String(error.stack ?? error) };
  }
}
console.log(JSON.stringify(told));
