//! Interactive sign-in: a node gets a URL, somebody goes there and says whose node it is, the node is told.

use mesh_core::control::types::{RegisterRequest, RegisterResponse, UserId};

use super::{
    Caller, Coordinator,
    command::{AdminError, Reply, SignInView},
    output::{Refusal, Response},
    register::{Admission, Owner, Problem, wanted_tags},
    signins::SignIn,
    timers::Timer,
};
use crate::{limits, policy::Assigner};

/// 24 letters of base58 carry 140 bits: nobody guesses one.
const CODE_LETTERS: usize = 24;

impl Coordinator {
    /// A node that shows nothing for itself: it gets a URL, or waits at the one it has.
    pub(super) fn sign_in(&mut self, caller: Caller, request: RegisterRequest) {
        let code = request.followup.rsplit('/').next().unwrap_or_default();
        let is_same =
            |machine, known: &RegisterRequest| machine == caller.machine && known.node_key == request.node_key;
        if let Some(known) = self.sign_ins.get(code)
            && is_same(known.machine, &known.request)
        {
            let code = code.to_owned();
            if let Some((conn, id)) = self.sign_ins.wait(&code, (caller.conn, caller.id)) {
                let newer = Refusal::new(409, "a newer request waits for the same sign-in");
                self.refuse(Caller { conn, id, ..caller }, newer);
            }
            return;
        }
        if !fits(&request) {
            let text = "the node says more of itself than is kept until somebody has signed in";
            return self.refuse(caller, Refusal::new(413, text));
        }
        let pending = self.sign_ins.of_machine(&caller.machine);
        let pending = pending.map(|(code, known)| (code.to_owned(), is_same(known.machine, &known.request)));
        let code = match pending {
            Some((code, true)) => code,
            Some((code, false)) => {
                self.give_up(&code, Refusal::new(409, "the machine registers another key"));
                self.new_code(caller, request)
            }
            None => match self.sign_ins.to_evict(caller.from) {
                Ok(None) => self.new_code(caller, request),
                Ok(Some(number)) => {
                    self.counters.sign_ins_evicted_total += 1;
                    if let Some(code) = self.sign_ins.code(number).map(str::to_owned) {
                        self.give_up(&code, Refusal::new(503, "too many sign-ins are under way"));
                    }
                    self.new_code(caller, request)
                }
                Err(()) => {
                    let text = "too many sign-ins are under way: try again in a minute";
                    let retry_after = Some(limits::SIGN_IN_RETRY);
                    return self.refuse(caller, Refusal { retry_after, ..Refusal::new(429, text) });
                }
            },
        };
        let auth_url = format!("{}/register/{code}", self.config.server_url);
        let response = RegisterResponse { auth_url, ..RegisterResponse::default() };
        self.respond(caller, Response::Register(Box::new(response)));
    }

    fn new_code(&mut self, caller: Caller, request: RegisterRequest) -> String {
        let code = self.base58(CODE_LETTERS);
        let number = self.sign_ins.open(code.clone(), caller.machine, caller.from, kept(request));
        self.timers.set(Timer::SignIn(number), self.after(limits::SIGN_IN_LIFE));
        code
    }

    /// A sign-in is over; who waits at it is told why.
    fn give_up(&mut self, code: &str, why: Refusal) {
        let Some(sign_in) = self.sign_ins.close(code) else { return };
        self.timers.clear(Timer::SignIn(sign_in.number));
        if let Some((conn, id)) = sign_in.waiting {
            self.refuse(Caller { conn, id, machine: sign_in.machine, from: sign_in.from }, why);
        }
    }

    /// The sign-in of a code; people copy the whole URL.
    fn found_sign_in(&self, code: &str) -> Result<(&str, &SignIn), AdminError> {
        let last = code.rsplit('/').next().unwrap_or(code);
        self.sign_ins.found(last).ok_or_else(|| AdminError::NotFound {
            what: "sign-in code",
            name: code.to_owned(),
            hint: "codes are good for a quarter of an hour and until the server restarts; the node shows a new one",
        })
    }

    pub(super) fn show_sign_in(&self, code: &str) -> Result<Reply, AdminError> {
        let (_, SignIn { machine, request, .. }) = self.found_sign_in(code)?;
        let hostinfo = request.hostinfo.as_deref().cloned().unwrap_or_default();
        let view =
            SignInView { machine: *machine, hostname: hostinfo.hostname, os: hostinfo.os, tags: hostinfo.request_tags };
        Ok(Reply::SignIn(view))
    }

    /// Somebody says whose node it is that waits with a code.
    pub(super) fn signed_in(
        &mut self,
        code: &str,
        user: UserId,
    ) -> Result<mesh_core::control::types::NodeId, AdminError> {
        let (code, sign_in) = self.found_sign_in(code)?;
        let (code, sign_in) = (code.to_owned(), sign_in.clone());
        let refused = |problem: Problem| AdminError::Refused(problem.0);
        let tags = wanted_tags(&sign_in.request).map_err(refused)?;
        self.check_tags(Assigner::User(user), &tags).map_err(refused)?;
        let owner = if tags.is_empty() { Owner::User(user) } else { Owner::Tags(tags) };
        let ephemeral = sign_in.request.ephemeral;
        let admission =
            Admission { machine: sign_in.machine, request: sign_in.request.clone(), owner, ephemeral, auth_key: None };
        let node = self.admit(admission).map_err(refused)?;
        self.sign_ins.close(&code);
        self.timers.clear(Timer::SignIn(sign_in.number));
        if let Some((conn, id)) = sign_in.waiting {
            let response = self.welcome(node);
            let caller = Caller { conn, id, machine: sign_in.machine, from: sign_in.from };
            self.respond(caller, Response::Register(Box::new(response)));
        }
        Ok(node)
    }
}

/// What of a request is needed once somebody has signed in. The rest is not kept: strangers wait here.
fn kept(request: RegisterRequest) -> RegisterRequest {
    let RegisterRequest { version, node_key, old_node_key, nl_key, expiry, hostinfo, ephemeral, .. } = request;
    RegisterRequest {
        version,
        node_key,
        old_node_key,
        nl_key,
        expiry,
        hostinfo,
        ephemeral,
        ..RegisterRequest::default()
    }
}

/// Whether what a node says of itself is kept until somebody has signed in.
fn fits(request: &RegisterRequest) -> bool {
    let bytes = serde_json::to_vec(&request.hostinfo).map(|json| json.len());
    bytes.is_ok_and(|bytes| bytes <= limits::SIGN_IN_HOSTINFO)
}
