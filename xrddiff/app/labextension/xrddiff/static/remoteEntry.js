// Cards for the tutorials on JupyterLab's launcher, and the page that is shown first. Written by hand in the form that JupyterLab loads (a container of
// webpack's module federation), so that nothing has to be built: it uses modules that JupyterLab shares.
var _JUPYTERLAB = (window._JUPYTERLAB = window._JUPYTERLAB || {});
(() => {
  const ICON =
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 52 52"><rect width="52" height="52" rx="6" fill="#22114b"/>' +
    '<g fill="none" stroke="#8a5cd1" stroke-width="1.5"><circle cx="26" cy="26" r="10"/><circle cx="26" cy="26" r="19"/></g>' +
    '<g fill="#fcb519"><circle cx="36" cy="26" r="2.6"/><circle cx="21" cy="17.3" r="2.6"/><circle cx="12" cy="39" r="2.6"/>' +
    '<circle cx="43" cy="17.5" r="2.6"/><circle cx="26" cy="45" r="2.6"/></g><circle cx="26" cy="26" r="3.4" fill="#f5f0ff"/></svg>';
  let shared;
  const load = async (name) => {
    const versions = Object.values(shared[name] || {});
    if (!versions.length) throw new Error(`xrddiff: this JupyterLab shares no ${name}`);
    return (await versions[0].get())();
  };
  _JUPYTERLAB.xrddiff = {
    init: (scope) => void (shared = scope),
    get: async () => {
      const [{ ILauncher }, { PageConfig }, { LabIcon }] = await Promise.all(
        ["@jupyterlab/launcher", "@jupyterlab/coreutils", "@jupyterlab/ui-components"].map(load)
      );
      const icon = new LabIcon({ name: "xrddiff:tutorial", svgstr: ICON });
      const activate = (app, launcher) => {
        const tutorials = JSON.parse(PageConfig.getOption("xrddiffTutorials") || "[]");
        tutorials.forEach(([path, title, wish], rank) => {
          const command = `xrddiff:open-${path}`;
          app.commands.addCommand(command, {
            label: title,
            caption: `Open the tutorial ${path}`,
            icon,
            execute: () => app.commands.execute("docmanager:open", { path }),
          });
          launcher.add({ command, category: wish, rank });
        });
        // The start page, unless the window shows what was open before.
        const start = PageConfig.getOption("xrddiffStart");
        const open = () => [...app.shell.widgets("main")].some((w) => !w.id.startsWith("launcher"));
        if (start) app.restored.then(() => open() || app.commands.execute("markdownviewer:open", { path: start }));
      };
      return () => ({ __esModule: true, default: { id: "xrddiff:tutorials", autoStart: true, requires: [ILauncher], activate } });
    },
  };
})();
