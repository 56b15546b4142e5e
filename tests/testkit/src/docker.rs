//! Real Docker daemons on the hosts of a lab.
//!
//! Each has its own data, its own containerd and, in a mount namespace of its own, its own
//! `/run/docker` and `/etc/docker`, so that several live on one machine. The directory of the
//! daemon is a shared mount: the namespaces of its sandboxes are seen by the agent of the host, as
//! they are on a machine where both are services.
//!
//! Nothing reaches a registry. The one image, `bb`, is made of a static busybox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::container::Container;
use crate::lab::{Host, Lab, lock};
use crate::netns::Netns;
use crate::process::{Finished, Process, run, run_within};
use crate::wait_until;

/// Where `.ci/unpack` puts packages that are not installed.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debian");
/// The environment variable that names a directory with the files of another Docker.
const ANOTHER: &str = "SKYBRIDGE_TEST_DOCKER";
/// How long the daemon may take to answer.
const READY: Duration = Duration::from_secs(60);
/// How long one command may take. Docker itself waits up to 30 seconds for a plugin.
const LIMIT: Duration = Duration::from_secs(120);
/// The image that every daemon has.
pub const IMAGE: &str = "bb";

/// What is mounted and started in the daemon's mount namespace; `$1` is its directory, `$2` its
/// host name. Mounts that others see too must not get ours.
const ENTER: &str = "
    set -e
    awk -v mine=\"$1\" '/ shared:/ && $5 != mine { print $5 }' /proc/self/mountinfo |
        while read -r place; do mount --make-slave \"$place\" || :; done
    hostname \"$2\"
    mkdir -p /run/docker /etc/docker
    mount --bind \"$1/run\" /run/docker
    mount --bind \"$1/etc\" /etc/docker
    mount --bind \"$1/resolv.conf\" /etc/resolv.conf
    shift 2
    exec \"$@\"";

/// Which Docker: from 23 on it has no cluster store, and its containerd is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DockerRelease {
    /// That of this machine's Debian, the one that is installed, or the one in the directory that
    /// `SKYBRIDGE_TEST_DOCKER` names.
    Usual,
    /// That of Debian 13.
    Later,
}

impl DockerRelease {
    /// Where its files are looked for, one place after the other.
    fn roots(self) -> Vec<PathBuf> {
        let first = match self {
            Self::Usual => std::env::var_os(ANOTHER).map(PathBuf::from),
            Self::Later => Some(Path::new(UNPACKED).join("trixie")),
        };
        first.into_iter().chain([UNPACKED.into(), "/".into()]).collect()
    }

    fn file(self, place: &str) -> PathBuf {
        let mut files = self.roots().into_iter().map(|root| root.join(place));
        files.find(|file| file.exists()).unwrap_or_else(|| Path::new("/").join(place))
    }

    /// A command with its programs in the path.
    fn command(self, mut command: Command) -> Command {
        let usual = std::env::var("PATH").unwrap_or_default();
        let mut path = String::new();
        for root in self.roots().iter().filter(|root| *root != Path::new("/")) {
            let root = root.display();
            path += &format!("{root}/usr/sbin:{root}/usr/bin:");
        }
        command.env("PATH", path + &usual);
        command.env("LD_LIBRARY_PATH", format!("{UNPACKED}/lib/x86_64-linux-gnu"));
        command
    }
}

/// What says why this Docker is not here.
pub(crate) fn probe(release: DockerRelease) -> Option<String> {
    let parts = [
        "usr/sbin/dockerd",
        "usr/bin/docker",
        "usr/bin/containerd",
        "usr/bin/containerd-shim-runc-v2",
    ];
    for part in parts {
        let file = release.file(part);
        if release == DockerRelease::Later && !file.starts_with(&release.roots()[0]) {
            return Some(format!("{part} of Debian 13's Docker is not unpacked"));
        }
        let works = release.command(Command::new(file)).arg("-v").output();
        if !works.is_ok_and(|output| output.status.success()) {
            return Some(format!("{part} of Docker is neither unpacked nor installed"));
        }
    }
    if !release.file("usr/bin/etcd").exists() {
        return Some("there is no etcd 3.4 for Docker's cluster store".to_owned());
    }
    let busybox = release.file("bin/busybox");
    (!busybox.exists()).then(|| "there is no static busybox".to_owned())
}

/// A Docker daemon on a host of a lab. Clones are the same daemon; the last one to go removes all
/// that it ever made.
#[derive(Debug, Clone)]
pub struct Docker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    release: DockerRelease,
    prefix: String,
    netns: Arc<Netns>,
    directory: PathBuf,
    logs: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Docker {
    /// A daemon that is not started yet.
    ///
    /// # Panics
    ///
    /// If its directory cannot be made.
    #[track_caller]
    #[must_use]
    pub fn new(lab: &Lab, host: &Host, release: DockerRelease) -> Self {
        let name = format!("docker{}", host.index());
        let directory = lab.directory().join(&name);
        for part in ["run/plugins", "etc/plugins", "data", "exec"] {
            fs::create_dir_all(directory.join(part)).expect("the lab's directory takes another");
        }
        // Whoever asks for a name of the world is refused at once and does not wait.
        fs::write(directory.join("resolv.conf"), "nameserver 127.0.0.1\n").expect("as above");
        let inner = Inner {
            name,
            release,
            prefix: lab.prefix().to_owned(),
            netns: Arc::clone(host.netns()),
            directory,
            logs: lab.logs(),
            process: Mutex::default(),
        };
        for words in [["--bind", "D", "D"], ["--make-private", "D", ""], ["--make-shared", "D", ""]]
        {
            let place = inner.directory.display().to_string();
            let words = words.map(|word| if word == "D" { place.as_str() } else { word });
            let mut mount = Command::new("mount");
            mount.args(words.iter().filter(|word| !word.is_empty()));
            let _ = run(mount).expect_success();
        }
        Self(Arc::new(inner))
    }

    /// The directory of sockets of plugins: the daemon's `/run/docker/plugins`.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.0.directory.join("run/plugins")
    }

    /// The namespace of its host.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.0.netns
    }

    /// A directory of its own, as it is seen by the daemon and by everybody else.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.directory.join("docker.sock")
    }

    /// Starts it with further arguments and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it runs already, ends, or does not answer in time.
    #[track_caller]
    pub fn start(&self, args: &[&str]) {
        assert!(!self.running(), "{} runs already", self.0.name);
        let inner = &*self.0;
        let directory = inner.directory.display().to_string();
        let mut daemon = inner.release.command(inner.netns.command("unshare"));
        daemon.args(["--mount", "--uts", "--propagation", "unchanged", "sh", "-c", ENTER, "sh"]);
        daemon.args([&directory, &inner.name]).arg(inner.release.file("usr/sbin/dockerd"));
        for (flag, place) in
            [("data-root", "data"), ("exec-root", "exec"), ("pidfile", "docker.pid")]
        {
            daemon.arg(format!("--{flag}={directory}/{place}"));
        }
        daemon.arg(format!("--host=unix://{directory}/docker.sock"));
        daemon.arg(format!("--cgroup-parent=/{}", inner.cgroup()));
        // Under systemd it would be another one by default, with other names of groups.
        daemon.args(["--exec-opt", "native.cgroupdriver=cgroupfs"]);
        daemon.args(["--bridge=none", "--shutdown-timeout=3"]).args(args);
        // A daemon that was killed leaves its own.
        let _: std::io::Result<()> = fs::remove_file(inner.directory.join("docker.pid"));
        *lock(&inner.process) = Some(Process::spawn(daemon, &inner.logs, &inner.name));
        wait_until(&format!("{} answers", inner.name), READY, || {
            assert!(self.running(), "{} ended, see its log", inner.name);
            // The client's own version comes without the daemon.
            let version = self.command(&["version", "--format", "{{.Server.Version}}"]).output();
            version.is_ok_and(|output| output.status.success()).then_some(())
        });
        if !self.try_docker(&["image", "inspect", IMAGE]).status.success() {
            self.import();
        }
    }

    /// Makes the image out of the static busybox.
    #[track_caller]
    fn import(&self) {
        let root = self.0.directory.join("image");
        for part in ["bin", "etc", "tmp", "root", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(part)).expect("the lab's directory takes another");
        }
        let busybox = self.0.release.file("bin/busybox");
        fs::copy(&busybox, root.join("bin/busybox")).expect("the busybox can be copied");
        let mut list = Command::new(&busybox);
        list.arg("--list");
        for applet in run(list).expect_success().stdout.lines().filter(|name| *name != "busybox") {
            let _: std::io::Result<()> = symlink("busybox", root.join("bin").join(applet));
        }
        let archive = self.0.directory.join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
        let _ = run(tar).expect_success();
        let archive = archive.display().to_string();
        let _ = self.docker(&["import", "-c", "CMD [\"sleep\", \"1d\"]", &archive, IMAGE]);
    }

    /// True while its process lives.
    #[must_use]
    pub fn running(&self) -> bool {
        lock(&self.0.process).as_mut().is_some_and(Process::running)
    }

    /// Its process id.
    ///
    /// # Panics
    ///
    /// If it was never started.
    #[track_caller]
    #[must_use]
    pub fn pid(&self) -> u32 {
        lock(&self.0.process).as_ref().expect("the daemon was started").pid()
    }

    /// Ends it as a crash would: its containerd dies with it, containers go on.
    #[track_caller]
    pub fn kill9(&self) {
        let process = lock(&self.0.process).take();
        let Some(mut process) = process else { return };
        process.kill();
        // The next daemon takes a dead containerd that nobody has waited for, as happens where
        // process 1 is slow, for a living one.
        let file = self.0.directory.join("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(&file).unwrap_or_default();
        wait_until("containerd is gone", READY, || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z'));
            state.unwrap_or(true).then_some(())
        });
        let _: std::io::Result<()> = fs::remove_file(file);
    }

    /// Ends it as an operator would, and its containers with it.
    ///
    /// # Panics
    ///
    /// If it has not ended after a minute.
    #[track_caller]
    pub fn stop(&self) {
        let process = lock(&self.0.process).take();
        if let Some(mut process) = process {
            assert!(process.stop(Duration::from_secs(60)), "{} does not stop", self.0.name);
        }
    }

    /// The command `docker` for this daemon.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let release = self.0.release;
        let mut docker = release.command(Command::new(release.file("usr/bin/docker")));
        docker.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        docker.env("DOCKER_CONFIG", self.0.directory.join("client"));
        docker.args(args);
        docker
    }

    /// Runs `docker` with these arguments and gives the result, whatever it is.
    #[track_caller]
    pub fn try_docker(&self, args: &[&str]) -> Finished {
        run_within(self.command(args), LIMIT)
    }

    /// Runs `docker` with these arguments and gives its output without the last line's end.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> String {
        self.try_docker(args).expect_success().stdout.trim_end().to_owned()
    }

    /// Starts a container `name` in `network` with further arguments of `docker run`.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[track_caller]
    pub fn run(&self, name: &str, network: &str, args: &[&str]) -> Container {
        let start = ["run", "--detach", "--name", name, "--hostname", name, "--network", network];
        let _ = self.docker(&[&start, args, &[IMAGE]].concat());
        self.container(name, "eth0")
    }

    /// An interface of a running container.
    ///
    /// # Panics
    ///
    /// If the container does not run, or has no such interface.
    #[track_caller]
    #[must_use]
    pub fn container(&self, name: &str, ifname: &str) -> Container {
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", name]);
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let alias = format!("{}-{}-{name}-{count}", self.0.prefix, self.0.name);
        Container::inspect(Arc::new(Netns::of_process(&alias, &pid)), ifname)
    }

    /// Runs a program in a container and gives its result.
    #[track_caller]
    pub fn try_exec(&self, name: &str, program: &[&str]) -> Finished {
        self.try_docker(&[&["exec", name], program].concat())
    }

    /// Runs a program in a container and gives its output.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn exec(&self, name: &str, program: &[&str]) -> String {
        self.try_exec(name, program).expect_success().stdout
    }
}

impl Inner {
    /// The control group of its containers.
    fn cgroup(&self) -> String {
        format!("{}-{}", self.prefix, self.name)
    }

    /// The processes of its containers, and their control groups from the leaves up.
    fn contained(&self) -> (Vec<i32>, Vec<PathBuf>) {
        let mut groups = Vec::new();
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(directories(Path::new("/sys/fs/cgroup")));
        for root in roots {
            below(&root.join(self.cgroup()), &mut groups);
        }
        let pids = groups.iter().flat_map(|group| {
            let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            listed.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        });
        (pids.collect(), groups)
    }
}

fn directories(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// `group` and all groups in it, the innermost first.
fn below(group: &Path, all: &mut Vec<PathBuf>) {
    if group.is_dir() {
        for inner in directories(group) {
            below(&inner, all);
        }
        all.push(group.to_owned());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The namespaces of its sandboxes are named after it, and so are its processes: containerd
        // and the shims of a daemon that was killed too.
        for _ in 0..100 {
            let (mut pids, _) = self.contained();
            let ours = |pid: &i32| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&*self.directory.to_string_lossy())
            };
            // The daemon goes first: it would start what is missing.
            let daemons = self.netns.pids().into_iter().filter(ours);
            pids.extend(daemons);
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                let _: nix::Result<()> = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        lock(&self.process).take();
        for group in self.contained().1 {
            let _: std::io::Result<()> = fs::remove_dir(group);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let place = self.directory.to_string_lossy().into_owned();
        let inside = |line: &str| line.split(' ').nth(1).map(str::to_owned);
        let mut mounts: Vec<_> = mounts.lines().filter_map(inside).collect();
        mounts.retain(|mount| Path::new(mount).starts_with(&place));
        for mount in mounts.iter().rev() {
            let mut umount = Command::new("umount");
            let _: std::io::Result<std::process::Output> = umount.args(["-l", mount]).output();
        }
    }
}

/// The cluster store that Dockers up to 20.10 can share: an etcd with the second version of the API,
/// on the switch. Not that of the agents.
#[derive(Debug)]
pub struct ClusterStore {
    _process: Process,
}

impl ClusterStore {
    /// Its port.
    const PORT: u16 = 2479;

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        let client = format!("http://192.0.2.254:{}", Self::PORT);
        let peer = format!("http://192.0.2.254:{}", Self::PORT + 1);
        let mut etcd = lab.switch().command(DockerRelease::Usual.file("usr/bin/etcd"));
        etcd.arg("--data-dir").arg(lab.directory().join("cluster-store"));
        etcd.args(["--enable-v2", "--name", "c", "--initial-cluster", &format!("c={peer}")]);
        for flag in ["listen-client-urls", "advertise-client-urls"] {
            etcd.args([&format!("--{flag}"), &client]);
        }
        for flag in ["listen-peer-urls", "initial-advertise-peer-urls"] {
            etcd.args([&format!("--{flag}"), &peer]);
        }
        let process = Process::spawn(etcd, &lab.logs(), "cluster-store");
        wait_until("the cluster store listens", READY, || {
            let connected = lab
                .switch()
                .enter(|| std::net::TcpStream::connect(("192.0.2.254", Self::PORT)).is_ok());
            connected.then_some(())
        });
        Self { _process: process }
    }

    /// What `--cluster-store` takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("etcd://192.0.2.254:{}", Self::PORT)
    }
}
