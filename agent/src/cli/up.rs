//! `mesh up`, `set`, `down`, `logout`: joining a network and leaving it.

use core::{fmt::Write, time::Duration};
use std::{fs, path::Path};

use hyper::Method;
use mesh_core::{
    control::{ControlUrl, types::is_tag},
    ip::prefix::Prefix,
    node::Prefs,
    printable,
};
use serde_json::{Value, json};
use transports::program::{Exit, Failure};

use super::{duration, print, print_object};
use crate::local_api::{
    client::Client,
    joining::{UpRequest, UpResult},
    status::Status,
};

/// How often it is looked whether somebody has to sign in.
const POLL: Duration = Duration::from_millis(100);

/// Preferences, as flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// Address of the control server, such as https://control.example.com
    #[arg(long, value_name = "URL")]
    login_server: Option<ControlUrl>,
    /// Name to go by instead of the host's own; empty for the host's own
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Use the subnet routes of peers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    accept_routes: Option<bool>,
    /// Networks behind this host that peers may reach over it, separated by commas; empty for none
    #[arg(long, value_name = "CIDRS", value_parser = routes)]
    advertise_routes: Option<Routes>,
    /// Tags to ask for, separated by commas; empty for none
    #[arg(long, value_name = "TAGS", value_parser = tags)]
    advertise_tags: Option<Tags>,
}

/// What to do to be connected.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Key to register with, or file:PATH of a file that holds one; without it somebody signs in
    #[arg(long, value_name = "KEY|file:PATH")]
    auth_key: Option<String>,
    /// Sign in anew
    #[arg(long)]
    force_reauth: bool,
    /// Preferences that are not given take their defaults
    #[arg(long)]
    reset: bool,
    /// How long to wait until it is up, such as 30s; for ever without
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
}

/// Networks, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Routes(Vec<Prefix>);

/// Tags, separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tags(Vec<String>);

impl Flags {
    /// Whether none was given.
    fn is_empty(&self) -> bool {
        let Self { login_server, hostname, accept_routes, advertise_routes, advertise_tags } = self;
        login_server.is_none()
            && hostname.is_none()
            && accept_routes.is_none()
            && advertise_routes.is_none()
            && advertise_tags.is_none()
    }

    /// The preferences that were given, with the names of the local API.
    fn changes(&self) -> Value {
        let mut changes = json!({});
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                changes[name] = value;
            }
        };
        put("ControlURL", self.login_server.as_ref().map(|url| json!(url)));
        put("Hostname", self.hostname.as_ref().map(|name| json!(name)));
        put("RouteAll", self.accept_routes.map(|accept| json!(accept)));
        put("AdvertiseRoutes", self.advertise_routes.as_ref().map(|routes| json!(routes.0)));
        put("AdvertiseTags", self.advertise_tags.as_ref().map(|tags| json!(tags.0)));
        changes
    }

    /// What of `current` is not as it was in the beginning and not given here, as the flags that say it.
    fn missing(&self, current: &Prefs) -> Vec<String> {
        let mut missing = Vec::new();
        if let (None, Some(url)) = (&self.login_server, &current.control_url) {
            missing.push(format!("--login-server={url}"));
        }
        if self.hostname.is_none() && !current.hostname.is_empty() {
            missing.push(format!("--hostname={}", current.hostname));
        }
        if self.accept_routes.is_none() && current.accept_routes {
            missing.push("--accept-routes".to_owned());
        }
        if self.advertise_routes.is_none() && !current.advertise_routes.is_empty() {
            let routes: Vec<_> = current.advertise_routes.iter().map(ToString::to_string).collect();
            missing.push(format!("--advertise-routes={}", routes.join(",")));
        }
        if self.advertise_tags.is_none() && !current.advertise_tags.is_empty() {
            missing.push(format!("--advertise-tags={}", current.advertise_tags.join(",")));
        }
        missing
    }

    /// As words of a command line.
    fn words(&self) -> Vec<String> {
        let given = Prefs {
            control_url: self.login_server.clone(),
            want_running: true,
            hostname: self.hostname.clone().unwrap_or_default(),
            accept_routes: self.accept_routes.unwrap_or_default(),
            advertise_routes: self.advertise_routes.clone().map(|routes| routes.0).unwrap_or_default(),
            advertise_tags: self.advertise_tags.clone().map(|tags| tags.0).unwrap_or_default(),
            ephemeral: false,
        };
        Self::default().missing(&given)
    }
}

impl Arguments {
    /// The preferences that are meant. The rule is that of the stock client: `up` alone changes none; with flags, those
    /// that are not given take their defaults, so those which are not as in the beginning have to be given too.
    fn prefs(&self, current: &Prefs) -> Result<Prefs, Failure> {
        let is_simple = self.flags.is_empty() && self.auth_key.is_none() && !self.force_reauth && !self.reset;
        if is_simple {
            return Ok(Prefs { want_running: true, ..current.clone() });
        }
        let missing = self.flags.missing(current);
        // Before there was a server there was nothing to lose.
        if !self.reset && current.control_url.is_some() && !missing.is_empty() {
            let mut command = "mesh up".to_owned();
            for word in self.flags.words().iter().chain(&missing) {
                let _ = write!(command, " {word}");
            }
            if self.force_reauth {
                command += " --force-reauth";
            }
            let message = "changing settings via \"mesh up\" requires mentioning all non-default flags";
            return Err(Failure::new(Exit::Usage, "flags-missing", message)
                .hint(format!("to keep them: {command}; to give them up: add --reset; to change one: mesh set")));
        }
        let given = &self.flags;
        Ok(Prefs {
            control_url: given.login_server.clone(),
            want_running: true,
            hostname: given.hostname.clone().unwrap_or_default(),
            accept_routes: given.accept_routes.unwrap_or_default(),
            advertise_routes: given.advertise_routes.clone().map(|routes| routes.0).unwrap_or_default(),
            advertise_tags: given.advertise_tags.clone().map(|tags| tags.0).unwrap_or_default(),
            ephemeral: current.ephemeral,
        })
    }
}

/// `mesh up`: returns when the node is connected.
pub(super) async fn up(client: &Client, json: bool, arguments: &Arguments) -> Result<(), Failure> {
    let current: Prefs = client.get("prefs").await?;
    let prefs = arguments.prefs(&current)?;
    let auth_key = arguments.auth_key.as_deref().map(auth_key).transpose()?;
    let request = UpRequest { prefs, auth_key, force_reauth: arguments.force_reauth };
    let up = client.send::<UpResult>(Method::POST, "up", &request);
    let watched = async {
        let mut shown = Shown::default();
        loop {
            tokio::time::sleep(POLL).await;
            match client.get("status").await {
                Ok(status) => shown.update(&status, json),
                Err(failure) => return failure,
            }
        }
    };
    let limit = async {
        match arguments.timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => core::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = up => result?,
        failure = watched => return Err(failure),
        () = limit => return Err(timed_out(&client.get("status").await?)),
    };
    if json {
        print_object(json!({"BackendState": result.backend_state}));
    } else if result.backend_state == "NeedsMachineAuth" {
        print("This node waits for an administrator of the network to admit it.");
    }
    Ok(())
}

/// What has been shown while it is waited for.
#[derive(Debug, Default)]
struct Shown {
    auth_url: String,
    problem: String,
}

impl Shown {
    #[expect(clippy::print_stderr, reason = "what people have to know while nothing is answered")]
    fn update(&mut self, status: &Status, json: bool) {
        if !status.auth_url.is_empty() && status.auth_url != self.auth_url {
            self.auth_url.clone_from(&status.auth_url);
            if json {
                print_object(json!({"AuthURL": status.auth_url, "BackendState": status.backend_state}));
            } else {
                eprintln!("\nTo authenticate, visit:\n\n\t{}\n", printable::line(&status.auth_url));
            }
        }
        if !status.control_problem.is_empty() && status.control_problem != self.problem {
            self.problem.clone_from(&status.control_problem);
            eprintln!("mesh: {}; trying again", printable::line(&status.control_problem));
        }
    }
}

fn timed_out(status: &Status) -> Failure {
    if status.auth_url.is_empty() {
        let why = if status.control_problem.is_empty() { "not up in time" } else { &status.control_problem };
        return Failure::new(Exit::Unreachable, "timeout", why)
            .hint("meshd goes on trying; mesh status shows how it is");
    }
    Failure::new(Exit::SignIn, "sign-in-needed", format!("nobody has signed in yet; visit {}", status.auth_url))
        .hint("meshd goes on waiting; mesh status shows how it is")
}

/// `mesh set`: changes the preferences that are given.
pub(super) async fn set(client: &Client, flags: &Flags) -> Result<(), Failure> {
    if flags.is_empty() {
        return Err(Failure::new(Exit::Usage, "usage", "no preference was given").hint("see mesh set --help"));
    }
    client.send::<Value>(Method::PATCH, "prefs", &flags.changes()).await.map(drop)
}

/// The key, or what is in the file that is named.
fn auth_key(text: &str) -> Result<String, Failure> {
    let Some(path) = text.strip_prefix("file:") else { return Ok(text.to_owned()) };
    let read = fs::read_to_string(Path::new(path));
    let key = read.map_err(|error| Failure::new(Exit::Usage, "auth-key", format!("cannot read {path}: {error}")))?;
    Ok(key.trim().to_owned())
}

fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|piece| !piece.is_empty())
}

fn routes(text: &str) -> Result<Routes, String> {
    let one = |text: &str| text.parse::<Prefix>().map_err(|error| format!("\"{text}\" is no network: {error}"));
    list(text).map(one).collect::<Result<_, _>>().map(Routes)
}

fn tags(text: &str) -> Result<Tags, String> {
    let one = |tag: &str| {
        if is_tag(tag) { Ok(tag.to_owned()) } else { Err(format!("\"{tag}\" is no tag; tags look like tag:server")) }
    };
    list(text).map(one).collect::<Result<_, _>>().map(Tags)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn up_alone_changes_nothing_and_with_flags_all_must_be_said() {
        let current = Prefs {
            control_url: "https://control.example.com".parse().ok(),
            want_running: false,
            hostname: "alice".to_owned(),
            accept_routes: true,
            advertise_routes: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
            advertise_tags: vec!["tag:a".to_owned()],
            ephemeral: false,
        };
        let wanted = Prefs { want_running: true, ..current.clone() };
        assert_eq!(parse(&[]).prefs(&current), Ok(wanted.clone()));
        assert_eq!(parse(&["--timeout", "30s"]).prefs(&current), Ok(wanted.clone()));

        let failure = parse(&["--hostname=bob"]).prefs(&current).unwrap_err();
        assert_eq!((failure.exit(), failure.code()), (Exit::Usage, "flags-missing"));
        let command = "mesh up --hostname=bob --login-server=https://control.example.com --accept-routes \
             --advertise-routes=10.0.0.0/8,fd00::/8 --advertise-tags=tag:a;";
        assert!(failure.what_to_do().contains(command), "{failure}");
        // Neither is one of these alone enough.
        for words in [["--force-reauth"], ["--auth-key=k"]] {
            assert!(parse(&words).prefs(&current).is_err(), "{words:?}");
        }
        let all = ["--login-server=https://control.example.com", "--hostname=alice", "--accept-routes"];
        let all = [&all[..], &["--advertise-routes=10.0.0.0/8, fd00::/8", "--advertise-tags=tag:a", "--force-reauth"]];
        assert_eq!(parse(&all.concat()).prefs(&current), Ok(wanted));
        let reset = parse(&["--reset", "--login-server=https://other.example.com"]).prefs(&current).unwrap();
        assert_eq!((reset.hostname.as_str(), reset.accept_routes), ("", false));
        // The first time there is nothing that could be lost.
        let first = Prefs { control_url: None, ..current };
        let prefs = parse(&["--login-server=https://control.example.com"]).prefs(&first).unwrap();
        assert_eq!(prefs.advertise_tags, Vec::<String>::new());
    }

    #[test]
    fn what_is_set_is_what_was_given() {
        let arguments = parse(&["--accept-routes=false", "--advertise-routes=", "--hostname="]);
        assert_eq!(arguments.flags.changes(), json!({"RouteAll": false, "AdvertiseRoutes": [], "Hostname": ""}));
        assert!(parse(&[]).flags.is_empty());
    }

    #[test]
    fn wrong_values_are_refused() {
        for word in
            ["--login-server=control", "--advertise-routes=10.0.0.0/33", "--advertise-tags=server", "--timeout=x"]
        {
            assert!(Line::try_parse_from(["up", word]).is_err(), "{word}");
        }
    }

    #[test]
    fn keys_come_from_files_too() {
        assert_eq!(auth_key("tskey-auth-1-2").as_deref(), Ok("tskey-auth-1-2"));
        assert_eq!(auth_key("file:/does/not/exist").unwrap_err().code(), "auth-key");
        let path = std::env::temp_dir().join(format!("mesh-auth-key-{}", std::process::id()));
        fs::write(&path, "tskey-auth-1-2\n").unwrap();
        assert_eq!(auth_key(&format!("file:{}", path.display())).as_deref(), Ok("tskey-auth-1-2"));
        fs::remove_file(path).unwrap();
    }

    fn parse(words: &[&str]) -> Arguments {
        Line::try_parse_from(["up"].iter().chain(words)).unwrap().arguments
    }
}
