//! One connection's rules, without the connection: who it is, what it may do, which version it speaks, and what is answered without
//! the cluster's help.

use super::command::{Ask, COMMANDS, Client, Command, Commands};
use super::parse::Request;
use super::pattern;
use super::reply::Reply;
use bytes::Bytes;
use kvhive_runtime::http::{Access, Role};
use std::sync::Arc;
use std::time::SystemTime;

/// The version of Redis whose commands these are, as far as there are any; clients choose by it what they send.
pub(super) const REDIS_VERSION: &str = "7.0.0";
/// The tenant of those who name none.
const DEFAULT_TENANT: &str = "default";
/// Wrong passwords after which a connection ends.
const MAX_FAILURES: u8 = 10;

/// What those who ask for settings are told: redis-benchmark asks for the first two.
const SETTINGS: [(&str, &str); 4] =
    [("appendonly", "no"), ("databases", "1"), ("maxmemory", "0"), ("save", "")];

/// What becomes of a request.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Step {
    /// This is answered.
    Say(Reply),
    /// This is answered, and the connection ends.
    End(Reply),
    /// The tenant's values are asked.
    Do(Ask),
    /// The node's figures are told, of these sections.
    Tell(Vec<String>),
}

/// One connection's state.
pub(super) struct Session {
    id: i64,
    access: Arc<Access>,
    value_bytes: usize,
    role: Option<Role>,
    tenant: String,
    resp3: bool,
    name: Bytes,
    failures: u8,
}

impl Session {
    pub(super) fn new(id: i64, access: Arc<Access>, value_bytes: usize) -> Session {
        Session {
            id,
            access,
            value_bytes,
            role: None,
            tenant: DEFAULT_TENANT.to_owned(),
            resp3: false,
            name: Bytes::new(),
            failures: 0,
        }
    }

    pub(super) fn speaks_resp3(&self) -> bool {
        self.resp3
    }

    /// Says whether it has shown a token.
    pub(super) fn is_known(&self) -> bool {
        self.role.is_some()
    }

    /// Returns whose values it is about.
    pub(super) fn tenant(&self) -> &str {
        &self.tenant
    }

    /// Takes a request in. `has` says whether there is a tenant of a name.
    pub(super) fn step(&mut self, request: &Request, now: SystemTime, has: impl Fn(&str) -> bool) -> Step {
        let command = match Command::read(request, now, self.value_bytes) {
            Ok(command) => command,
            Err(refusal) => return Step::Say(refusal),
        };
        match (command, self.role) {
            (Command::Ping(None), _) => Step::Say(Reply::Word("PONG")),
            (Command::Quit, _) => Step::End(Reply::OK),
            (Command::Reset, _) => {
                *self = Session {
                    failures: self.failures,
                    ..Session::new(self.id, self.access.clone(), self.value_bytes)
                };
                Step::Say(Reply::Word("RESET"))
            }
            (Command::Hello { version, auth, name }, _) => self.hello(version, auth, name, has),
            (Command::Auth { user, password }, _) => match self.show(user, &password, has) {
                Ok(()) => Step::Say(Reply::OK),
                Err(refusal) => refusal,
            },
            (_, None) => Step::Say(Reply::Error("NOAUTH Authentication required.".to_owned())),
            (Command::Values(ask), Some(role)) => {
                let needs = if ask == Ask::Size { Role::Viewer } else { Role::Admin };
                if role >= needs {
                    return Step::Do(ask);
                }
                let why = format!(
                    "NOPERM this token gives the role {role}, and values need {needs}: the cluster's own token"
                );
                Step::Say(Reply::Error(why))
            }
            (Command::Info(sections), Some(_)) => Step::Tell(sections),
            (command, Some(_)) => Step::Say(self.local(command)),
        }
    }

    /// Answers what needs nobody else.
    fn local(&mut self, command: Command) -> Reply {
        match command {
            Command::Ping(Some(text)) | Command::Echo(text) => Reply::Bulk(text),
            Command::Select(0) => Reply::OK,
            Command::Select(_) => Reply::wrong("DB index is out of range: kvhive has database 0 alone"),
            Command::Client(Client::SetName(name)) => {
                self.name = name;
                Reply::OK
            }
            Command::Client(Client::GetName) if self.name.is_empty() => Reply::Nil,
            Command::Client(Client::GetName) => Reply::Bulk(self.name.clone()),
            Command::Client(Client::Id) => Reply::Integer(self.id),
            // What a library is called is of no use here, and refusing it would have some of them end.
            Command::Client(Client::SetInfo) => Reply::OK,
            Command::Commands(asked) => commands(&asked),
            Command::Config(patterns) => {
                let is_asked = |name: &str| {
                    patterns
                        .iter()
                        .any(|pattern| pattern::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
                };
                let asked = SETTINGS.iter().filter(|(name, _)| is_asked(name));
                Reply::Map(asked.map(|(name, value)| (Reply::text(*name), Reply::text(*value))).collect())
            }
            _ => Reply::wrong("this is answered elsewhere"),
        }
    }

    fn hello(
        &mut self,
        version: Option<i64>,
        auth: Option<(Bytes, Bytes)>,
        name: Option<Bytes>,
        has: impl Fn(&str) -> bool,
    ) -> Step {
        if version.is_some_and(|version| !(2..=3).contains(&version)) {
            return Step::Say(Reply::Error("NOPROTO unsupported protocol version".to_owned()));
        }
        if let Some((user, password)) = auth
            && let Err(refusal) = self.show(Some(user), &password, has)
        {
            return refusal;
        }
        if !self.is_known() {
            let why = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time";
            return Step::Say(Reply::Error(why.to_owned()));
        }
        if let Some(version) = version {
            self.resp3 = version == 3;
        }
        if let Some(name) = name {
            self.name = name;
        }
        Step::Say(Reply::Map(vec![
            (Reply::text("server"), Reply::text("kvhive")),
            (Reply::text("version"), Reply::text(REDIS_VERSION)),
            (Reply::text("proto"), Reply::Integer(if self.resp3 { 3 } else { 2 })),
            (Reply::text("id"), Reply::Integer(self.id)),
            (Reply::text("mode"), Reply::text("standalone")),
            (Reply::text("role"), Reply::text("master")),
            (Reply::text("modules"), Reply::Array(Vec::new())),
        ]))
    }

    /// Takes what somebody shows; a wrong password takes nothing away from who it was before.
    fn show(
        &mut self,
        user: Option<Bytes>,
        password: &Bytes,
        has: impl Fn(&str) -> bool,
    ) -> Result<(), Step> {
        let user = user.unwrap_or(Bytes::from_static(DEFAULT_TENANT.as_bytes()));
        let tenant = std::str::from_utf8(&user).ok().filter(|tenant| has(tenant));
        match (self.access.role_of(password), tenant) {
            (Some(role), Some(tenant)) => {
                self.role = Some(role);
                self.tenant = tenant.to_owned();
                self.failures = 0;
                Ok(())
            }
            // Which of the two is wrong is nobody's to learn.
            _ => {
                self.failures += 1;
                let why = "WRONGPASS invalid username-password pair: the user is a tenant's name, the password a token of the cluster";
                let reply = Reply::Error(why.to_owned());
                Err(if self.failures < MAX_FAILURES { Step::Say(reply) } else { Step::End(reply) })
            }
        }
    }
}

/// Returns what is known of commands.
fn commands(asked: &Commands) -> Reply {
    let entry = |(name, arity): &(&str, i64)| {
        let numbers = [0, 0, 0].map(Reply::Integer);
        let head = [Reply::text(*name), Reply::Integer(*arity), Reply::Array(Vec::new())];
        Reply::Array(head.into_iter().chain(numbers).collect())
    };
    match asked {
        Commands::All => Reply::Array(COMMANDS.iter().map(entry).collect()),
        Commands::Some(names) => {
            let known =
                |name: &String| COMMANDS.iter().find(|(known, _)| known == name).map_or(Reply::Nil, entry);
            Reply::Array(names.iter().map(known).collect())
        }
        Commands::Count => Reply::count(COMMANDS.len()),
        Commands::Docs => Reply::Map(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn session() -> Session {
        let access = Access::default().with(Role::Admin, b"all").expect("it is new");
        let access = access.with(Role::Viewer, b"look").expect("it is new");
        Session::new(7, Arc::new(access), 1000)
    }

    impl Session {
        fn says(&mut self, line: &str) -> Step {
            let args = line.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
            self.step(&Request { args, too_long: None }, UNIX_EPOCH, |name| {
                ["default", "acme"].contains(&name)
            })
        }

        fn error(&mut self, line: &str) -> String {
            match self.says(line) {
                Step::Say(Reply::Error(error)) | Step::End(Reply::Error(error)) => {
                    error.split(' ').next().unwrap_or_default().to_owned()
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn strangers_are_told_nothing_but_how_to_show_themselves() {
        let mut session = session();
        for line in [
            "GET a",
            "INFO",
            "COMMAND",
            "CLIENT ID",
            "ECHO a",
            "PING a",
            "SELECT 0",
            "CONFIG GET *",
            "HELLO 3",
        ] {
            assert_eq!(session.error(line), "NOAUTH", "{line}");
        }
        assert_eq!(session.says("PING"), Step::Say(Reply::Word("PONG")));
        assert!(!session.speaks_resp3());
        assert_eq!(session.says("QUIT"), Step::End(Reply::OK));
    }

    #[test]
    fn a_user_is_a_tenant_and_a_password_a_token() {
        let mut session = session();
        for line in ["AUTH wrong", "AUTH nobody all", "AUTH acme wrong", "HELLO 3 AUTH acme wrong"] {
            assert_eq!(session.error(line), "WRONGPASS", "{line}");
            assert!(!session.is_known(), "{line}");
        }
        assert_eq!(session.says("AUTH all"), Step::Say(Reply::OK));
        assert_eq!(session.tenant(), "default");
        assert!(matches!(session.says("HELLO 3 AUTH acme all SETNAME me"), Step::Say(Reply::Map(_))));
        assert_eq!((session.tenant(), session.speaks_resp3()), ("acme", true));
        assert_eq!(session.says("CLIENT GETNAME"), Step::Say(Reply::text("me")));
        assert_eq!(session.error("AUTH default wrong"), "WRONGPASS");
        assert_eq!(session.tenant(), "acme", "it is who it was");
        assert_eq!(session.says("GET a"), Step::Do(Ask::Get(Bytes::from_static(b"a"))));
        session.says("RESET");
        assert_eq!(session.error("GET a"), "NOAUTH");
    }

    #[test]
    fn guessing_ends() {
        let mut session = session();
        for _ in 1..MAX_FAILURES {
            assert!(matches!(session.says("AUTH wrong"), Step::Say(_)));
        }
        assert!(matches!(session.says("AUTH wrong"), Step::End(_)));
    }

    #[test]
    fn values_are_for_the_clusters_token_alone() {
        let mut session = session();
        session.says("AUTH look");
        for line in ["GET a", "SET a b", "DEL a", "SCAN 0", "EXISTS a"] {
            assert_eq!(session.error(line), "NOPERM", "{line}");
        }
        assert_eq!(session.says("DBSIZE"), Step::Do(Ask::Size));
        assert_eq!(session.says("INFO Server"), Step::Tell(vec!["server".to_owned()]));
    }

    /// How a command is called here, and the least that its caller must have shown: nothing, any token, or the cluster's own.
    const CALLS: [(&str, Option<Role>); 27] = [
        ("AUTH wrong", None),
        ("CLIENT ID", Some(Role::Viewer)),
        ("COMMAND COUNT", Some(Role::Viewer)),
        ("CONFIG GET save", Some(Role::Viewer)),
        ("DBSIZE", Some(Role::Viewer)),
        ("DEL a", Some(Role::Admin)),
        ("ECHO a", Some(Role::Viewer)),
        ("EXISTS a", Some(Role::Admin)),
        ("GET a", Some(Role::Admin)),
        ("HELLO 3", Some(Role::Viewer)),
        ("INFO", Some(Role::Viewer)),
        ("MGET a b", Some(Role::Admin)),
        ("MSET a b", Some(Role::Admin)),
        ("PING", None),
        ("PSETEX a 10 b", Some(Role::Admin)),
        ("PTTL a", Some(Role::Admin)),
        ("QUIT", None),
        ("RESET", None),
        ("SCAN 0", Some(Role::Admin)),
        ("SELECT 0", Some(Role::Viewer)),
        ("SET a b", Some(Role::Admin)),
        ("SETEX a 10 b", Some(Role::Admin)),
        ("SETNX a b", Some(Role::Admin)),
        ("STRLEN a", Some(Role::Admin)),
        ("TTL a", Some(Role::Admin)),
        ("TYPE a", Some(Role::Admin)),
        ("UNLINK a", Some(Role::Admin)),
    ];

    #[test]
    fn each_command_is_for_whom_the_table_says_and_for_nobody_else() {
        let name = |line: &str| line.split(' ').next().unwrap_or_default().to_ascii_lowercase();
        let called: Vec<String> = CALLS.iter().map(|(line, _)| name(line)).collect();
        let known: Vec<&str> = COMMANDS.iter().map(|(known, _)| *known).collect();
        assert_eq!(called, known, "each command has a row that says whose it is");
        // Wrong ones give what nothing gives, also where the tenant is there, and so does what was shown before a RESET.
        let shown: [(&[&str], Option<Role>); 9] = [
            (&[], None),
            (&["AUTH wrong"], None),
            (&["AUTH acme wrong"], None),
            (&["AUTH nobody all"], None),
            (&["HELLO 3 AUTH acme wrong"], None),
            (&["AUTH all", "RESET"], None),
            (&["AUTH look"], Some(Role::Viewer)),
            (&["AUTH all", "AUTH look"], Some(Role::Viewer)),
            (&["AUTH look", "AUTH acme all"], Some(Role::Admin)),
        ];
        for (before, role) in shown {
            for (line, needs) in CALLS {
                let mut session = session();
                before.iter().for_each(|line| drop(session.says(line)));
                let refused = match session.says(line) {
                    Step::Say(Reply::Error(error)) => error.split(' ').next().map(str::to_owned),
                    _ => None,
                };
                let refused = refused.as_deref().filter(|code| ["NOAUTH", "NOPERM"].contains(code));
                let expected = match (role, needs) {
                    (None, Some(_)) => Some("NOAUTH"),
                    (Some(role), Some(needs)) if role < needs => Some("NOPERM"),
                    _ => None,
                };
                assert_eq!(refused, expected, "{line} after {before:?}");
            }
        }
    }

    #[test]
    fn clients_find_what_they_ask_for_at_their_start() {
        let mut session = session();
        session.says("AUTH all");
        let pair = |name, value| (Reply::text(name), Reply::text(value));
        assert_eq!(session.says("CONFIG GET save"), Step::Say(Reply::Map(vec![pair("save", "")])));
        assert_eq!(
            session.says("CONFIG GET APPEND* data*"),
            Step::Say(Reply::Map(vec![pair("appendonly", "no"), pair("databases", "1")]))
        );
        assert_eq!(session.says("SELECT 0"), Step::Say(Reply::OK));
        assert_eq!(session.error("SELECT 1"), "ERR");
        assert_eq!(session.says("CLIENT ID"), Step::Say(Reply::Integer(7)));
        assert_eq!(session.says("CLIENT SETINFO LIB-NAME redis-py"), Step::Say(Reply::OK));
        assert_eq!(session.says("COMMAND COUNT"), Step::Say(Reply::count(COMMANDS.len())));
        assert!(
            matches!(session.says("COMMAND INFO get nothing"), Step::Say(Reply::Array(two)) if two.len() == 2 && two[1] == Reply::Nil)
        );
        assert_eq!(session.error("HELLO 4"), "NOPROTO");
    }
}
