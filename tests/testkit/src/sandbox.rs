//! A program under the settings of a systemd unit, without systemd.
//!
//! A test program starts itself again as a runner ([`run_if_asked`]), which reads a unit file, puts
//! its settings on itself and becomes the program: resource limits, the bounding set, no new
//! privileges, and system call filters as systemd makes them, from the same lists
//! (`systemd-analyze syscall-filter`).
//!
//! Emulated: `Limit*`, `UMask`, `CapabilityBoundingSet`, `NoNewPrivileges`, `SystemCallFilter` and
//! `SystemCallErrorNumber`, `RestrictAddressFamilies`, `RestrictNamespaces`, `RestrictRealtime`,
//! `LockPersonality`, `MemoryDenyWriteExecute`; of `RestrictSUIDSGID` the change of modes. What
//! needs control groups or a mount namespace is not (`NOT_EMULATED`). A setting that is in neither
//! list is refused, so that a new one is not forgotten here.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::str::FromStr as _;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use syscalls::Sysno;

/// The word that makes a test program a runner.
pub(crate) const RUN: &str = "--under-unit";

/// Settings that the runner leaves out: they need control groups, a mount namespace, another user,
/// or are no restriction.
const NOT_EMULATED: &[&str] = &[
    "AmbientCapabilities",
    "DeviceAllow",
    "DevicePolicy",
    "DynamicUser",
    "ExecReload",
    "ExecStart",
    "KeyringMode",
    "KillMode",
    "NotifyAccess",
    "OOMScoreAdjust",
    "PrivateDevices",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "RemoveIPC",
    "Restart",
    "RestartSec",
    "StateDirectory",
    "StateDirectoryMode",
    "SystemCallArchitectures",
    "TimeoutStartSec",
    "Type",
    "WatchdogSec",
];

/// The `[Service]` settings of a unit, each with its values in order.
pub type Settings = BTreeMap<String, Vec<String>>;

/// Reads the `[Service]` section of a unit file.
///
/// # Errors
/// When it cannot be read, or has a line that is no setting.
pub fn service_settings(unit: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(unit).with_context(|| unit.display().to_string())?;
    let mut settings = Settings::new();
    let mut service = false;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            service = line == "[Service]";
        } else if service {
            let (key, value) = line.split_once('=').ok_or_else(|| anyhow!("no setting: {line}"))?;
            settings.entry(key.to_owned()).or_default().push(value.to_owned());
        }
    }
    Ok(settings)
}

/// Becomes `PROGRAM ARG...` when the command line is `--under-unit UNIT PROGRAM ARG...`; returns
/// otherwise. A test program calls it first.
pub fn run_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|first| first != RUN) {
        return;
    }
    let (Some(unit), Some(program)) = (args.next(), args.next()) else { std::process::exit(2) };
    let failed = match service_settings(Path::new(&unit)).and_then(|settings| enter(&settings)) {
        Ok(()) => Command::new(program).args(args).exec().into(),
        Err(err) => err,
    };
    let _: std::io::Result<()> =
        std::io::Write::write_all(&mut std::io::stderr(), format!("{failed:#}\n").as_bytes());
    std::process::exit(1);
}

/// Puts the settings on this process, which must have one thread.
fn enter(settings: &Settings) -> Result<()> {
    let mut denied = Denied::default();
    let mut filters: Vec<BpfProgram> = Vec::new();
    // It does not let further filters be set.
    let mut last = None;
    let error = settings.get("SystemCallErrorNumber").map(Vec::as_slice);
    ensure!(matches!(error, None | Some([..])) && error.is_none_or(|all| all == ["EPERM"]));
    for (key, values) in settings {
        let words = || values.iter().flat_map(|value| value.split_whitespace());
        let yes = || values.last().is_some_and(|value| value == "yes");
        match key.as_str() {
            "CapabilityBoundingSet" => bound(&words().collect::<Vec<_>>())?,
            "LimitCORE" => limit(Resource::RLIMIT_CORE, &values[0])?,
            "LimitNOFILE" => limit(Resource::RLIMIT_NOFILE, &values[0])?,
            "LockPersonality" if yes() => denied.always(&["personality"]),
            "MemoryDenyWriteExecute" if yes() => denied.write_and_execute(),
            "NoNewPrivileges" if yes() => nix::sys::prctl::set_no_new_privs()?,
            "RestrictAddressFamilies" => filters.push(families(&words().collect::<Vec<_>>())?),
            "RestrictNamespaces" => denied.namespaces(&words().collect::<Vec<_>>())?,
            "RestrictRealtime" if yes() => denied.realtime(),
            "RestrictSUIDSGID" if yes() => denied.set_ids(),
            "SystemCallErrorNumber" => {}
            "SystemCallFilter" => last = Some(allowed(values)?),
            "UMask" => {
                let mask = u32::from_str_radix(&values[0], 8)?;
                umask(Mode::from_bits_truncate(mask));
            }
            other if NOT_EMULATED.contains(&other) => {}
            other => bail!("the runner does not know the setting {other}"),
        }
    }
    // systemd does so too: its flags lie in memory, where no filter can look.
    let enosys = SeccompAction::Errno(nix::errno::Errno::ENOSYS as u32);
    filters.push(program([("clone3", Vec::new())].into(), SeccompAction::Allow, enosys)?);
    filters.push(program(denied.0, SeccompAction::Allow, refusal())?);
    for filter in filters.into_iter().chain(last) {
        seccompiler::apply_filter(&filter)?;
    }
    Ok(())
}

fn refusal() -> SeccompAction {
    SeccompAction::Errno(nix::errno::Errno::EPERM as u32)
}

type Rules = BTreeMap<&'static str, Vec<SeccompRule>>;

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram> {
    let mut numbered = BTreeMap::new();
    for (name, rules) in rules {
        // Another architecture may lack one.
        if let Ok(number) = Sysno::from_str(name) {
            numbered.insert(i64::from(number.id()), rules);
        }
    }
    compile(numbered, otherwise, matched)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram> {
    let arch: TargetArch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()?)
}

fn condition(argument: u8, op: Op, value: u64) -> Result<SeccompCondition> {
    Ok(SeccompCondition::new(argument, Len::Dword, op, value)?)
}

/// A rule of one or several conditions that must all hold.
fn rule(conditions: &[(u8, Op, u64)]) -> SeccompRule {
    let all =
        conditions.iter().map(|(argument, op, value)| condition(*argument, op.clone(), *value));
    let all: Result<Vec<_>> = all.collect();
    all.and_then(|all| Ok(SeccompRule::new(all)?)).expect("arguments are below six")
}

/// System calls that are refused, always or with certain arguments.
#[derive(Default)]
struct Denied(Rules);

impl Denied {
    fn add(&mut self, name: &'static str, conditions: &[(u8, Op, u64)]) {
        self.0.entry(name).or_default().push(rule(conditions));
    }

    fn always(&mut self, names: &[&'static str]) {
        for name in names {
            self.0.insert(name, Vec::new());
        }
    }

    fn write_and_execute(&mut self) {
        let (exec, both) = (4, 4 | 2);
        self.add("mmap", &[(2, Op::MaskedEq(both), both)]);
        self.add("mprotect", &[(2, Op::MaskedEq(exec), exec)]);
        self.add("pkey_mprotect", &[(2, Op::MaskedEq(exec), exec)]);
        let shm_exec = 0o100_000;
        self.add("shmat", &[(2, Op::MaskedEq(shm_exec), shm_exec)]);
    }

    fn namespaces(&mut self, kept: &[&str]) -> Result<()> {
        let flags: [(&str, u64); 7] = [
            ("cgroup", 0x0200_0000),
            ("ipc", 0x0800_0000),
            ("mnt", 0x0002_0000),
            ("net", 0x4000_0000),
            ("pid", 0x2000_0000),
            ("user", 0x1000_0000),
            ("uts", 0x0400_0000),
        ];
        let none = kept == ["yes"];
        for name in kept {
            ensure!(none || flags.iter().any(|(known, _)| known == name), "no namespace: {name}");
        }
        for (_, flag) in flags.iter().filter(|(name, _)| none || !kept.contains(name)) {
            for (call, argument) in [("unshare", 0), ("clone", 0), ("setns", 1)] {
                self.add(call, &[(argument, Op::MaskedEq(*flag), *flag)]);
            }
        }
        // Any kind of namespace.
        self.add("setns", &[(1, Op::Eq, 0)]);
        Ok(())
    }

    fn realtime(&mut self) {
        for policy in [1, 2, 6] {
            self.add("sched_setscheduler", &[(1, Op::Eq, policy)]);
        }
    }

    fn set_ids(&mut self) {
        for (call, argument) in [("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1)] {
            for bit in [0o4000, 0o2000] {
                self.add(call, &[(argument, Op::MaskedEq(bit), bit)]);
            }
        }
    }
}

/// Lets sockets be made of these families only.
fn families(names: &[&str]) -> Result<BpfProgram> {
    let mut others = Vec::new();
    for name in names {
        let number = match *name {
            "AF_UNIX" => 1,
            "AF_INET" => 2,
            "AF_INET6" => 10,
            "AF_NETLINK" => 16,
            other => bail!("no number for {other}"),
        };
        others.push((0, Op::Ne, number));
    }
    let refused = SeccompAction::Errno(nix::errno::Errno::EAFNOSUPPORT as u32);
    program([("socket", vec![rule(&others)])].into(), SeccompAction::Allow, refused)
}

/// Lets only these system calls through: the first line lists what is allowed, later ones with `~`
/// take away.
fn allowed(lines: &[String]) -> Result<BpfProgram> {
    let sets = sets()?;
    // As systemd does: without these no program begins.
    let mut names = expand(&sets, ["@default", "execve", "arch_prctl"].into_iter())?;
    for line in lines {
        match line.strip_prefix('~') {
            Some(line) => {
                for name in expand(&sets, line.split_whitespace())? {
                    names.remove(&name);
                }
            }
            None => names.extend(expand(&sets, line.split_whitespace())?),
        }
    }
    let numbers = names.iter().filter_map(|name| Sysno::from_str(name).ok());
    let rules: BTreeMap<i64, Vec<SeccompRule>> =
        numbers.map(|number| (i64::from(number.id()), Vec::new())).collect();
    ensure!(rules.len() > 100, "only {} system calls are allowed", rules.len());
    compile(rules, refusal(), SeccompAction::Allow)
}

/// systemd's sets of system calls.
fn sets() -> Result<BTreeMap<String, Vec<String>>> {
    let output = Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]).output()?;
    ensure!(output.status.success(), "systemd-analyze syscall-filter: {output:?}");
    let text = String::from_utf8(output.stdout)?;
    let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(member) = line.strip_prefix("    ") {
            let members: Option<&mut Vec<String>> =
                current.as_ref().and_then(|name| sets.get_mut(name));
            if let (Some(members), false) = (members, member.starts_with('#')) {
                members.push(member.trim().to_owned());
            }
        } else {
            current = line.starts_with('@').then(|| line.trim().to_owned());
            if let Some(name) = &current {
                sets.insert(name.clone(), Vec::new());
            }
        }
    }
    Ok(sets)
}

fn expand<'a>(
    sets: &BTreeMap<String, Vec<String>>,
    names: impl Iterator<Item = &'a str>,
) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut left: Vec<String> = names.map(str::to_owned).collect();
    while let Some(name) = left.pop() {
        if !name.starts_with('@') {
            found.insert(name);
            continue;
        }
        let members = sets.get(&name).ok_or_else(|| anyhow!("systemd has no set {name}"))?;
        left.extend(members.iter().cloned());
    }
    Ok(found)
}

fn bound(names: &[&str]) -> Result<()> {
    let mut kept = BTreeSet::new();
    for name in names {
        let capability =
            Capability::from_str(name).map_err(|err| anyhow!("no capability {name}: {err}"))?;
        kept.insert(capability.index());
    }
    for capability in caps::all() {
        let has = caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false);
        if has && !kept.contains(&capability.index()) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    Ok(())
}

fn limit(resource: Resource, value: &str) -> Result<()> {
    let value: u64 = value.parse()?;
    let (_, hard) = getrlimit(resource)?;
    // systemd may raise it; where this process may not, the tests go on with what there is.
    setrlimit(resource, value, value)
        .or_else(|_| setrlimit(resource, value.min(hard), hard))
        .context("a resource limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_read_by_section_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("x.service");
        let text = "[Unit]\nA=1\n[Service]\n# no\nF=a b\nF=~c\nE=\n[Install]\nB=2\n";
        std::fs::write(&unit, text).unwrap();
        let settings = service_settings(&unit).unwrap();
        assert_eq!(settings["F"], ["a b", "~c"]);
        assert_eq!(settings["E"], [""]);
        assert_eq!(settings.len(), 2);
    }
}
