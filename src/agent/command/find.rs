//! What a command's name stands for.
//!
//! 1. A component in the container's volumes: `/bin/NAME`, `/bin/NAME.wasm`, or the path given.
//! 2. A tool of the node: `tools/NAME.wasm`, or for one of [`APPLETS`] `tools/busybox.wasm`, or the
//!    image `busybox` of the cluster's registry.
//! 3. The container's own component, by the container's name or its image's (`/NAME`, too, as images of others
//!    have it), or for an applet if it is `busybox`.

use std::path::{Component, Path, PathBuf};

use edgeorc_runtime::Mount;

use crate::agent::beneath::{self, Held};
use crate::agent::command::{Commands, NotStarted};
use crate::agent::dirs::PodDir;
use crate::agent::image::{ImageError, Wanted};
use crate::agent::pod::plan::PullPolicy;
use crate::agent::sessions::LiveContainer;

/// The tool that stands for many.
const BUSYBOX: &str = "busybox";
/// What [`BUSYBOX`] can do, by `argv[0]`.
const APPLETS: &[&str] = &[
    "[",
    "base64",
    "basename",
    "busybox",
    "cat",
    "chmod",
    "chown",
    "cp",
    "cut",
    "date",
    "dd",
    "dirname",
    "du",
    "echo",
    "egrep",
    "env",
    "expr",
    "false",
    "fgrep",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "nc",
    "nslookup",
    "printenv",
    "printf",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tar",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "uname",
    "uniq",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];
/// Folders in which other systems keep their tools.
const TOOL_FOLDERS: &[&str] = &["/bin/", "/usr/bin/", "/usr/local/bin/", "/sbin/"];
/// How often links are followed is up to the system; this is how many mounts one path may match.
const PATHS_MAX: usize = 4;

/// What to run.
#[derive(Debug)]
pub(super) struct Found {
    /// Its compiled code.
    pub(super) compiled: PathBuf,
    /// A read-only root folder that shows where the volumes are.
    pub(super) root: Option<Mount>,
}

/// Where a command was found on the disk.
enum Place {
    /// In a volume of the container; held, so that no guest can put something else there.
    Volume(Held),
    /// Among the tools of the node.
    Tool(PathBuf),
}

impl Commands {
    /// Looks a command of a container up, and compiles it if need be.
    pub(super) async fn find(
        &self,
        container: &LiveContainer,
        name: &str,
    ) -> Result<Found, NotStarted> {
        if name.is_empty() {
            return Err(not_found(name));
        }
        let images = &self.shared.images;
        let broken = |cause: ImageError| NotStarted::Image { name: name.to_owned(), cause };
        let plain = TOOL_FOLDERS.iter().find_map(|folder| name.strip_prefix(folder));
        let plain = plain.unwrap_or(name);
        let is_tool = !plain.contains('/') && !plain.starts_with('.');
        let is_applet = is_tool && APPLETS.contains(&plain);
        let tools = [is_tool.then_some(plain), is_applet.then_some(BUSYBOX)];
        let tools = tools.iter().flatten().map(|tool| format!("{tool}.wasm")).collect();
        let (place, root) = self.look(container, name, tools).await.ok_or(NotStarted::Gone)?;
        let with_root = |compiled: PathBuf| Found { compiled, root };
        let adopted = match &place {
            // The handle is held until the file was read.
            Some(Place::Volume(held)) => {
                Some(images.adopt(&held.path(), Some(&self.dir.uid())).await)
            }
            Some(Place::Tool(file)) => Some(images.adopt(file, None).await),
            None => None,
        };
        if let Some(adopted) = adopted {
            return adopted.map(with_root).map_err(broken);
        }
        let own = plain.strip_prefix('/').unwrap_or(plain);
        if own == container.config.name || own == image_name(&container.image) {
            let compiled = container.config.compiled.clone();
            return Ok(Found { compiled, root: None });
        }
        if !is_tool {
            return Err(not_found(name));
        }
        if is_applet && image_name(&container.image) == BUSYBOX {
            return Ok(with_root(container.config.compiled.clone()));
        }
        if is_applet {
            let dir = self.dir.clone();
            let pod = self.tasks.block("pod-read", move || dir.read_pod()).await.flatten();
            // Its namespace says which images it may run.
            let pod = pod.ok_or(NotStarted::Gone)?;
            let image = images
                .ready(&Wanted {
                    pod: &pod,
                    field_path: format!("spec.containers{{{}}}", container.config.name),
                    image: BUSYBOX,
                    pull: PullPolicy::IfNotPresent,
                })
                .await;
            // A cluster without the image has no tools; that is no fault of the command.
            let image = image.inspect_err(|err| tracing::debug!(%err, "no image busybox"));
            return Ok(with_root(image.map_err(|_| not_found(name))?.compiled));
        }
        Err(not_found(name))
    }

    /// Looks for a command on the disk, in the container's volumes first, and makes the root folder
    /// that its tools see. `None`: the node stops.
    async fn look(
        &self,
        container: &LiveContainer,
        name: &str,
        tools: Vec<String>,
    ) -> Option<(Option<Place>, Option<Mount>)> {
        let (dir, mounts) = (self.dir.clone(), container.config.mounts.clone());
        let (folder, container) = (self.shared.node.dirs.tools(), container.config.name.clone());
        let candidates = candidates(name);
        let look = move || {
            let root = root(&dir, &container, &mounts);
            let in_volume = candidates.iter().find_map(|path| in_mounts(&mounts, path));
            let place = in_volume.map(Place::Volume).or_else(|| {
                let files = tools.into_iter().map(|tool| folder.join(tool));
                files.into_iter().find(|file| file.is_file()).map(Place::Tool)
            });
            (place, root)
        };
        self.tasks.block("command-look", look).await
    }
}

fn not_found(name: &str) -> NotStarted {
    let is_path = name.contains('/');
    let why =
        if is_path { "no such file or directory" } else { "executable file not found in $PATH" };
    NotStarted::NotFound { name: name.to_owned(), why }
}

/// A folder with an empty folder for each mount of a container, so that a tool can walk down to
/// them; `None` if there is a root already.
pub(crate) fn root(dir: &PodDir, container: &str, mounts: &[Mount]) -> Option<Mount> {
    if mounts.iter().any(|mount| mount.guest_path.trim_end_matches('/').is_empty()) {
        return None;
    }
    let host_path = dir.exec_root(container);
    dir.make(&host_path).ok()?;
    for mount in mounts {
        let below = relative(&mount.guest_path)?;
        let _ = dir.make(&host_path.join(below));
    }
    let guest_path = "/".to_owned();
    Some(Mount { host_path, pin: None, guest_path, is_read_only: true, limit: None })
}

/// Where a command may lie in the container.
fn candidates(name: &str) -> Vec<String> {
    let is_wasm = Path::new(name).extension().is_some_and(|ext| ext.eq_ignore_ascii_case("wasm"));
    let path = if name.contains('/') {
        format!("/{}", name.trim_start_matches('/'))
    } else {
        format!("/bin/{name}")
    };
    let mut found = vec![path.clone()];
    if is_wasm && !name.contains('/') {
        found.push(format!("/{name}"));
    }
    if !is_wasm {
        found.push(format!("{path}.wasm"));
    }
    found.truncate(PATHS_MAX);
    found
}

/// The file that a guest has at `path`, held open. Never outside the volume, whatever links a guest
/// made or makes in this moment.
fn in_mounts(mounts: &[Mount], path: &str) -> Option<Held> {
    let below = relative(path)?;
    let holding = mounts.iter().filter_map(|mount| {
        let at = relative(&mount.guest_path)?;
        let rest = below.strip_prefix(&at).ok()?;
        Some((at.components().count(), mount, rest))
    });
    let (_, mount, rest) = holding.max_by_key(|(depth, ..)| *depth)?;
    let held = beneath::open_following(&mount.host_path, rest).ok()?;
    (!held.is_folder).then_some(held)
}

/// A guest's path without its root; `None` if it climbs.
fn relative(path: &str) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => below.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

/// `registry/team/app:v1` is `app`.
fn image_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    let last = image.rsplit('/').next().unwrap_or(image);
    last.split(':').next().unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_looked_up_in_the_deepest_volume_and_never_outside() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.canonicalize().unwrap()
        };
        let (outer, inner) = (folder("outer"), folder("inner"));
        std::fs::write(outer.join("tool.wasm"), "o").unwrap();
        std::fs::write(inner.join("tool.wasm"), "i").unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../secret", outer.join("out")).unwrap();
        let mount = |host_path: &PathBuf, guest_path: &str| Mount {
            host_path: host_path.clone(),
            pin: None,
            guest_path: guest_path.to_owned(),
            is_read_only: false,
            limit: None,
        };
        let mounts = [mount(&outer, "/bin"), mount(&inner, "/bin/more/")];
        std::os::unix::fs::symlink("tool.wasm", outer.join("link.wasm")).unwrap();
        let read = |path: &str| {
            in_mounts(&mounts, path).map(|held| std::fs::read_to_string(held.path()).unwrap())
        };
        assert_eq!(read("/bin/tool.wasm").as_deref(), Some("o"));
        assert_eq!(read("/bin/more/tool.wasm").as_deref(), Some("i"));
        assert_eq!(read("/bin/link.wasm").as_deref(), Some("o"));
        for nothing in ["/bin/out", "/bin/../secret", "/bin", "/tool.wasm", "/binary"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
        // What was found stays what it was, whatever a guest puts in its place.
        let held = in_mounts(&mounts, "/bin/tool.wasm").unwrap();
        std::fs::remove_file(outer.join("tool.wasm")).unwrap();
        std::os::unix::fs::symlink("../secret", outer.join("tool.wasm")).unwrap();
        assert_eq!(std::fs::read_to_string(held.path()).unwrap(), "o");
    }

    #[test]
    fn the_tools_are_those_of_busybox() {
        let source = include_str!("../../../wasm-apps/busybox/src/lib.rs");
        let (tools, _) = source.split_once("];").unwrap();
        let table = tools.lines().filter_map(|line| line.strip_prefix("    (\""));
        let mut has: Vec<&str> = table.filter_map(|row| Some(row.split_once('"')?.0)).collect();
        has.push(BUSYBOX);
        has.sort_unstable();
        assert_eq!(APPLETS, has);
    }

    #[test]
    fn a_name_is_looked_for_in_bin_and_with_its_ending() {
        assert_eq!(candidates("x"), ["/bin/x", "/bin/x.wasm"]);
        assert_eq!(candidates("x.wasm"), ["/bin/x.wasm", "/x.wasm"]);
        assert_eq!(candidates("/data/x"), ["/data/x", "/data/x.wasm"]);
        assert_eq!(candidates("data/x.wasm"), ["/data/x.wasm"]);
    }

    #[test]
    fn an_images_name_is_its_last_part() {
        for image in
            ["app", "app:v1", "a/b/app:v1", "r.io:5000/app", "app@sha256:00", "a/app:v@sha256:0"]
        {
            assert_eq!(image_name(image), "app", "{image}");
        }
    }
}
