//! What crosses an interface.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::netns::Netns;
use crate::process::{Finished, Process, run};
use crate::wait_until;

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    /// Starts capturing what matches `filter`, and returns once tcpdump listens.
    ///
    /// # Panics
    ///
    /// If tcpdump does not start.
    #[track_caller]
    #[must_use]
    pub fn start(
        netns: &Netns,
        interface: &str,
        filter: &str,
        logs: &std::path::Path,
        name: &str,
    ) -> Self {
        let file = logs.join(format!("{name}.pcap"));
        let mut command = netns.command("tcpdump");
        // In immediate mode each packet takes a slot as large as the largest super-frame, so the 2
        // MiB that the ring has by itself are 32 packets: a burst of more is lost when tcpdump does
        // not run meanwhile.
        let ring = ["-B", "65536"];
        command
            .args(["-i", interface, "-n", "--immediate-mode", "-U", "-s", "0", "-Z", "root"])
            .args(ring)
            .arg("-w")
            .arg(&file)
            .arg(filter);
        let process = Process::spawn(command, logs, name);
        let log = logs.join(format!("{name}.log"));
        wait_until("tcpdump listens", Duration::from_secs(10), || {
            std::fs::read_to_string(&log)
                .is_ok_and(|text| text.contains("listening on"))
                .then_some(())
        });
        Self { process, file, log }
    }

    /// The frames captured so far.
    ///
    /// # Panics
    ///
    /// If the file cannot be read back.
    #[track_caller]
    #[must_use]
    pub fn frames(&self) -> Vec<Vec<u8>> {
        // pcap(5): a header of 24 bytes, then for each packet 16 bytes, the third word of which is
        // the length.
        let bytes = std::fs::read(&self.file).expect("tcpdump has made its file");
        let mut rest = bytes.get(24..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
            let Some((frame, tail)) = tail.split_at_checked(length as usize) else { break };
            frames.push(frame.to_vec());
            rest = tail;
        }
        frames
    }

    /// Waits until at least `count` packets are in the file. What has crossed the interface is not
    /// written at once, and what is not written when the capture ends is lost.
    ///
    /// # Panics
    ///
    /// If there are fewer after `deadline`.
    #[track_caller]
    pub fn wait(&self, count: usize, deadline: Duration) {
        self.wait_for(&format!("{count} packets are captured"), deadline, |packets| {
            packets.len() >= count
        });
    }

    /// The same until what is in the file, a line for each packet, is what is waited for.
    ///
    /// # Panics
    ///
    /// If it is not after `deadline`.
    #[track_caller]
    pub fn wait_for(&self, what: &str, deadline: Duration, come: impl Fn(&[String]) -> bool) {
        wait_until(what, deadline, || come(&self.read().1).then_some(()));
    }

    /// Ends the capture and gives tcpdump's line for each packet.
    ///
    /// # Panics
    ///
    /// If the file cannot be read back.
    #[track_caller]
    #[must_use]
    pub fn stop(mut self) -> Vec<String> {
        self.process.signal(Signal::SIGINT);
        wait_until("tcpdump ends", Duration::from_secs(10), || {
            (!self.process.running()).then_some(())
        });
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let (finished, packets) = self.read();
        assert!(finished.status.success(), "{finished}\n{log}");
        packets
    }

    /// What is in the file by now.
    fn read(&self) -> (Finished, Vec<String>) {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-e", "-v", "-r"]).arg(&self.file);
        let finished = run(command);
        // With -v a packet has further, indented lines.
        let mut packets: Vec<String> = Vec::new();
        for line in finished.stdout.lines() {
            match packets.last_mut() {
                Some(packet) if line.starts_with([' ', '\t']) => {
                    packet.push(' ');
                    packet.push_str(line.trim());
                }
                _ => packets.push(line.to_owned()),
            }
        }
        (finished, packets)
    }
}
