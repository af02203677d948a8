//! What was named as vital for the node: its own addresses, and the API servers that it must reach.
//!
//! An API server may have a name, and what that stands for is asked for again now and then: on a task of its own, since an answer may
//! take long. A name that was never resolved is a fact that cannot be read, so nothing is offered until it is; later the last answer
//! stands, over restarts, too.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ledger::Notes;
use linux::route::Vital;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Where an API server is: `10.96.0.1`, `api.example.org:6443`, `https://[fd00::1]:6443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// An address.
    Ip(IpAddr),
    /// A name for one or several.
    Name(String),
    /// The one that this kubeconfig names.
    Kubeconfig(PathBuf),
}

/// Values with commas between them, as the downward API writes `status.hostIPs`. None of them is a list, too: an environment variable
/// that is set to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

/// The addresses of all hosts, or why they are not known.
pub(crate) type Resolved = Result<Vec<IpAddr>, String>;

const RESOLVE_EVERY: Duration = Duration::from_secs(60);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Resolves once, and waits for it.
pub(crate) fn resolve(hosts: &[Host]) -> Resolved {
    let mut answers = Answers::default();
    answers.ask(hosts);
    answers.resolved(hosts)
}

/// A channel that begins with what is known without asking anybody.
pub(crate) fn channel(hosts: &[Host], notes: &Notes) -> (watch::Sender<Resolved>, watch::Receiver<Resolved>) {
    watch::channel(Answers::noted(notes).resolved(hosts))
}

/// Keeps the channel up to date until `stop`. The first answer is sent even if it is no news.
pub(crate) async fn follow(
    hosts: Vec<Host>,
    notes: Notes,
    out: watch::Sender<Resolved>,
    stop: CancellationToken,
) {
    let mut answers = Answers::noted(&notes);
    let mut first = true;
    while hosts.iter().any(|host| !matches!(host, Host::Ip(_))) {
        let (asked, notes) = (hosts.clone(), notes.clone());
        let task = tokio::task::spawn_blocking(move || {
            let before = answers.known.clone();
            answers.ask(&asked);
            if answers.known != before {
                answers.note(&notes);
            }
            answers
        });
        let done = tokio::select! {
            done = task => done,
            () = stop.cancelled() => return,
        };
        answers = done.unwrap_or_default();
        let resolved = answers.resolved(&hosts);
        out.send_if_modified(|last| {
            let news = first || *last != resolved;
            *last = resolved;
            news
        });
        first = false;
        let pause = if answers.failures.is_empty() { RESOLVE_EVERY } else { RETRY_AFTER };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
    }
    stop.cancelled().await;
}

/// What is vital, noted in the state folder for ehost-device, which asks once more before it moves a NIC.
#[derive(Debug)]
pub(super) struct Noted {
    notes: Notes,
    /// What the note says, as far as this process knows.
    vital: Option<Vital>,
}

impl Noted {
    pub(super) fn at(state: &Path) -> Self {
        Noted { notes: Notes::at(state), vital: None }
    }

    /// Writes it down, if it is news.
    pub(super) async fn keep(&mut self, vital: Vital) {
        if self.vital.as_ref() == Some(&vital) {
            return;
        }
        let (notes, news) = (self.notes.clone(), vital.clone());
        let written = tokio::task::spawn_blocking(move || {
            let is_there = notes.vital().is_ok_and(|noted| noted == news);
            if is_there { Ok(()) } else { notes.write_vital(&news) }
        });
        if let Ok(Err(error)) = written.await {
            let reason = format!("{:#}", anyhow::Error::from(error));
            warn!(
                reason,
                "ehost-device is not told which addresses are vital: it goes by what the kernel shows"
            );
        }
        self.vital = Some(vital);
    }
}

/// What names stand for, as far as that was ever known, and why the last question was not answered.
#[derive(Debug, Default)]
struct Answers {
    known: BTreeMap<String, Vec<IpAddr>>,
    failures: BTreeMap<String, String>,
}

impl Answers {
    /// What an agent before this one knew.
    fn noted(notes: &Notes) -> Answers {
        let known = notes.names().unwrap_or_else(|error| {
            let reason = format!("{:#}", anyhow::Error::from(error));
            warn!(reason, "what the names of API servers stood for last is not known");
            BTreeMap::new()
        });
        Answers { known, failures: BTreeMap::new() }
    }

    fn note(&self, notes: &Notes) {
        if let Err(error) = notes.write_names(&self.known) {
            let reason = format!("{:#}", anyhow::Error::from(error));
            warn!(reason, "what the names of API servers stand for is not kept for the next start");
        }
    }

    fn ask(&mut self, hosts: &[Host]) {
        for host in hosts {
            let Some(name) = host.name() else { continue };
            match host.addresses() {
                Ok(mut ips) => self.learn(&name, &mut ips),
                Err(why) => self.fail(&name, why),
            }
        }
    }

    fn learn(&mut self, name: &str, ips: &mut Vec<IpAddr>) {
        ips.sort_unstable();
        ips.dedup();
        if ips.is_empty() {
            return self.fail(name, "the name stands for no address".to_owned());
        }
        if self.failures.remove(name).is_some() {
            info!(name, "the API server's name can be resolved again");
        }
        self.known.insert(name.to_owned(), std::mem::take(ips));
    }

    fn fail(&mut self, name: &str, why: String) {
        if self.failures.get(name) != Some(&why) {
            let kept =
                if self.known.contains_key(name) { "the last answer stands" } else { "no NIC is offered" };
            warn!(name, reason = why, "the API server's name cannot be resolved: {kept}");
        }
        self.failures.insert(name.to_owned(), why);
    }

    fn resolved(&self, hosts: &[Host]) -> Resolved {
        let mut ips = Vec::new();
        for host in hosts {
            match (host, host.name()) {
                (Host::Ip(ip), _) => ips.push(*ip),
                (_, name) => {
                    let name = name.unwrap_or_default();
                    let Some(known) = self.known.get(&name) else {
                        let why = self.failures.get(&name).map_or("not asked yet", String::as_str);
                        return Err(format!("the API server's name {name} cannot be resolved: {why}"));
                    };
                    ips.extend(known);
                }
            }
        }
        Ok(ips)
    }
}

impl Host {
    /// Under which name its addresses are known; none where it is one.
    fn name(&self) -> Option<String> {
        match self {
            Host::Ip(_) => None,
            Host::Name(name) => Some(name.clone()),
            Host::Kubeconfig(path) => Some(path.display().to_string()),
        }
    }

    /// Asks; an error is why there is no answer.
    fn addresses(&self) -> Result<Vec<IpAddr>, String> {
        match self {
            Host::Ip(ip) => Ok(vec![*ip]),
            Host::Name(name) => {
                let found = (name.as_str(), 0).to_socket_addrs().map_err(|error| error.to_string())?;
                Ok(found.map(|address| address.ip()).collect())
            }
            Host::Kubeconfig(path) => {
                let server = cluster::get::server(path)
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error)))?;
                server.parse::<Host>()?.addresses()
            }
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || format!("{text:?} is no address, no name and no URL of an API server");
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
        if let Ok(ip) = authority.parse() {
            return Ok(Host::Ip(ip));
        }
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':').or((port.is_empty()).then_some("0"))),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("0")),
            },
        };
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            return Err(refuse());
        }
        if let Ok(ip) = host.parse() {
            return Ok(Host::Ip(ip));
        }
        if is_name(host) && !authority.starts_with('[') {
            Ok(Host::Name(host.to_owned()))
        } else {
            Err(refuse())
        }
    }
}

/// RFC 1123, and the underscores that are met all the same. A last label of digits only would be a mistyped address.
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or(text);
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl<T: FromStr> FromStr for List<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn api_servers_are_addresses_names_and_urls() {
        for (text, host) in [
            ("10.96.0.1", Host::Ip(ip("10.96.0.1"))),
            ("10.96.0.1:6443", Host::Ip(ip("10.96.0.1"))),
            ("fd00::1", Host::Ip(ip("fd00::1"))),
            ("[fd00::1]", Host::Ip(ip("fd00::1"))),
            ("https://[fd00::1]:6443/", Host::Ip(ip("fd00::1"))),
            ("https://10.0.0.5:6443", Host::Ip(ip("10.0.0.5"))),
            ("https://api.example.org/path", Host::Name("api.example.org".to_owned())),
            ("localhost:8080", Host::Name("localhost".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(host), "{text}");
        }
        for bad in [
            "",
            "https://",
            "10.0.0.5:port",
            "[fd00::1]6443",
            "[name]",
            "a b",
            "-x",
            "10.0.0.300",
            "u:p@h",
            "fe80::1%eth0",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_have_commas_and_may_be_empty() {
        assert_eq!("192.0.2.1, fd00::1,".parse(), Ok(List(vec![ip("192.0.2.1"), ip("fd00::1")])));
        assert_eq!("".parse(), Ok(List::<IpAddr>(Vec::new())));
        assert!("192.0.2.1;fd00::1".parse::<List<IpAddr>>().is_err());
    }

    #[test]
    fn what_was_known_once_stays_known_and_what_never_was_is_an_error() {
        let hosts = [Host::Ip(ip("192.0.2.1")), Host::Name("api.example.org".to_owned())];
        let mut answers = Answers::default();
        assert!(answers.resolved(&hosts).unwrap_err().contains("not asked yet"));
        answers.fail("api.example.org", "no such host".to_owned());
        assert!(
            answers
                .resolved(&hosts)
                .unwrap_err()
                .contains("api.example.org cannot be resolved: no such host")
        );
        answers.learn("api.example.org", &mut vec![ip("192.0.2.9"), ip("192.0.2.9")]);
        assert_eq!(answers.resolved(&hosts), Ok(vec![ip("192.0.2.1"), ip("192.0.2.9")]));
        let folder = tempfile::tempdir().unwrap();
        let notes = Notes::at(folder.path());
        assert!(Answers::noted(&notes).resolved(&hosts).is_err());
        answers.note(&notes);
        assert_eq!(Answers::noted(&notes).resolved(&hosts), answers.resolved(&hosts));
        let another = [Host::Name("api.example.net".to_owned())];
        assert!(Answers::noted(&notes).resolved(&another).is_err());
        answers.learn("api.example.org", &mut Vec::new());
        assert_eq!(answers.resolved(&hosts), Ok(vec![ip("192.0.2.1"), ip("192.0.2.9")]));
        assert!(!answers.failures.is_empty());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Host>();
            let _ = text.parse::<List<IpAddr>>();
        }
    }
}
