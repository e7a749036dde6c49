//! Rego: the rules of a policy that are programs.
//!
//! The package says which dialect a rule is in, where it may stand, and what has to be `true`. A rule is compiled when its policy is loaded
//! and evaluated on a thread of its own, which is left behind if it does not keep to its time or its memory: regorus ends by itself between
//! two steps, and the watch is there for the single step that does not end. Whatever is not exactly `true` denies.

mod code;

use std::fmt;
use std::num::NonZeroU32;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError, Value};

use self::code::Named;
use crate::limits;

/// A rule that was compiled.
#[derive(Clone)]
pub struct Rule {
    dialect: Dialect,
    engine: Engine,
    /// Whether there is a rule `deny`, which then has to be empty.
    has_deny: bool,
    reads_mount_path: bool,
}

/// What a package makes of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `signature.allow`, as `cosign verify-attestation --policy` has it: Rego v0, the input is a statement.
    Cosign,
    /// `sigstore.isCompliant`, as policy-controller has it: Rego v0.
    PolicyController,
    /// `modelkit.mount.allow` and `deny`: Rego v1, kitfs's own.
    ModelKit,
}

/// Where in a policy a rule stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `attestations[].policy`: it sees one statement.
    Attestation,
    /// `spec.policy`: it sees all that met an authority.
    Policy,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegoError {
    /// It does not begin with a package.
    #[error("a rule begins with `package`: {expected} was expected")]
    NoPackage {
        /// What may stand there.
        expected: &'static str,
    },
    /// Its package has no meaning there.
    #[error("the package `{package}` has no meaning here: {expected} was expected")]
    Package {
        /// What stands there.
        package: String,
        /// What may.
        expected: &'static str,
    },
    /// It is malformed, or asks for something that there is not.
    #[error("line {line} of the rule: {what}")]
    Line {
        /// Where.
        line: usize,
        /// What regorus says.
        what: String,
    },
    /// It is malformed, and it is not known where.
    #[error("the rule: {0}")]
    Whole(String),
    /// It calls a function that there is not. That would only be found when it is called, and would then deny.
    #[error("line {line} of the rule: there is no function `{function}` (none reaches the network, the host or another file)")]
    NoFunction {
        /// Where.
        line: usize,
        /// What it is called.
        function: String,
    },
    /// What decides is missing.
    #[error("the package has no rule `{0}`, which decides")]
    NoRule(&'static str),
}

/// What a rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is exactly `true`, and nothing speaks against it.
    Allowed,
    /// It is anything else.
    Denied(Denial),
}

/// Why a rule does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// The rule has another value.
    #[error("`{rule}` is {value}, not true")]
    NotTrue {
        /// The rule.
        rule: &'static str,
        /// What it is, shortened.
        value: String,
    },
    /// The rule has no value for this input.
    #[error("`{rule}` is undefined for this input")]
    Undefined {
        /// The rule.
        rule: &'static str,
    },
    /// `deny` is not empty.
    #[error("{}", .0.join("; "))]
    Messages(Vec<String>),
    /// `deny` is something that cannot be empty.
    #[error("`{rule}` is {value}, where a set of messages was expected")]
    NoMessages {
        /// The rule.
        rule: &'static str,
        /// What it is, shortened.
        value: String,
    },
    /// It cannot be evaluated.
    #[error("the rule failed: {0}")]
    Failed(String),
    /// It took too long.
    #[error("the rule took longer than {limit:?}", limit = limits::REGO_TIME)]
    TimedOut,
    /// It took too much memory.
    #[error("the rule took more than {limit} bytes of memory")]
    Memory {
        /// How much it may take.
        limit: u64,
    },
}

impl Dialect {
    const ALL: [Self; 3] = [Self::Cosign, Self::PolicyController, Self::ModelKit];

    fn package(self) -> &'static str {
        match self {
            Self::Cosign => "signature",
            Self::PolicyController => "sigstore",
            Self::ModelKit => "modelkit.mount",
        }
    }

    /// The rule that decides, with its package.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Cosign => "signature.allow",
            Self::PolicyController => "sigstore.isCompliant",
            Self::ModelKit => "modelkit.mount.allow",
        }
    }

    /// The version of the language.
    pub fn version(self) -> &'static str {
        match self {
            Self::Cosign | Self::PolicyController => "v0",
            Self::ModelKit => "v1",
        }
    }

    fn may_stand(self, place: Place) -> bool {
        match place {
            Place::Attestation => matches!(self, Self::Cosign | Self::PolicyController),
            Place::Policy => matches!(self, Self::PolicyController | Self::ModelKit),
        }
    }
}

impl Place {
    fn expected(self) -> &'static str {
        match self {
            Self::Attestation => "`signature` or `sigstore`",
            Self::Policy => "`modelkit.mount` or `sigstore`",
        }
    }

    /// Where the rule of a package stands, if the command line gives a rule and does not say.
    pub(super) fn of(text: &str) -> Self {
        if package(text) == Some(Dialect::ModelKit.package()) { Self::Policy } else { Self::Attestation }
    }
}

/// The name that errors have for the text.
const SOURCE: &str = "policy.rego";
/// The messages that speak against it.
const DENY: &str = "modelkit.mount.deny";
/// Characters of a value that a denial shows.
const SHOWN: usize = 200;

impl Rule {
    /// Compiles `text` as what may stand at `place`.
    pub fn compile(place: Place, text: &str) -> Result<Self, RegoError> {
        let expected = place.expected();
        let package = package(text).ok_or(RegoError::NoPackage { expected })?;
        let dialect = Dialect::ALL
            .into_iter()
            .find(|dialect| dialect.package() == package && dialect.may_stand(place))
            .ok_or_else(|| RegoError::Package { package: package.to_owned(), expected })?;
        let mut engine = Engine::new();
        engine.set_rego_v0(dialect.version() == "v0");
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(timer(limits::REGO_TIME));
        let found = engine.add_policy(SOURCE.to_owned(), text.to_owned()).map_err(|error| located(&error))?;
        if found.strip_prefix("data.") != Some(dialect.package()) {
            return Err(RegoError::Package { package: found, expected });
        }
        let declared = |engine: &Engine, rule: &str| engine.has_declared_rule_rooted_at(SOURCE, rule).unwrap_or(false);
        let name = dialect.rule().rsplit('.').next().unwrap_or_default();
        if !declared(&engine, name) {
            return Err(RegoError::NoRule(dialect.rule()));
        }
        let has_deny = dialect == Dialect::ModelKit && declared(&engine, "deny");
        // Finds what the parser does not (variables that nothing binds, rules that contradict each other), and prepares what every evaluation
        // needs.
        engine.compile_with_entrypoint(&format!("data.{}", dialect.rule()).into()).map_err(|error| located(&error))?;
        let mut reads_mount_path = false;
        for module in engine.get_modules() {
            let named = Named::of(module);
            if let Some((function, line)) = named.unknown_function(module) {
                return Err(RegoError::NoFunction { line, function });
            }
            reads_mount_path |= dialect == Dialect::ModelKit && named.reads_input(&["mount", "path"]);
        }
        Ok(Self { dialect, engine, has_deny, reads_mount_path })
    }

    /// Whether it could read `mount.path` of its input, which is null where nothing is mounted.
    pub fn reads_mount_path(&self) -> bool {
        self.reads_mount_path
    }

    /// Its dialect.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Evaluates it over `input`.
    pub fn evaluate(&self, input: &serde_json::Value) -> Verdict {
        self.evaluate_within(limits::REGO_MEMORY_BYTES, input)
    }

    fn evaluate_within(&self, memory_bytes: u64, input: &serde_json::Value) -> Verdict {
        let mut rule = self.clone();
        // How large an input is, is limited where it comes from, and is not the rule's doing.
        rule.engine.set_input(Value::from(input.clone()));
        let (sender, receiver) = mpsc::channel();
        let before = resident_bytes();
        let began = Instant::now();
        let thread = thread::Builder::new().name("rego".into()).stack_size(limits::REGO_STACK_BYTES).spawn(move || {
            // Nobody listens any more if it took too long.
            _ = sender.send(rule.evaluate_here(began));
        });
        if let Err(error) = thread {
            return Verdict::Denied(Denial::Failed(format!("no thread for it: {error}")));
        }
        loop {
            match receiver.recv_timeout(limits::REGO_WATCH_INTERVAL) {
                Ok(verdict) => return verdict,
                Err(RecvTimeoutError::Disconnected) => return Verdict::Denied(Denial::Failed("regorus panicked".into())),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if resident_bytes().saturating_sub(before) > memory_bytes {
                return Verdict::Denied(Denial::Memory { limit: memory_bytes });
            }
            if began.elapsed() > limits::REGO_TIME + limits::REGO_GRACE {
                return Verdict::Denied(Denial::TimedOut);
            }
        }
    }

    fn evaluate_here(mut self, began: Instant) -> Verdict {
        let rule = self.dialect.rule();
        let mut values = Vec::new();
        for rule in [Some(rule), self.has_deny.then_some(DENY)].into_iter().flatten() {
            let Some(rest) = limits::REGO_TIME.checked_sub(began.elapsed()) else { return Verdict::Denied(Denial::TimedOut) };
            self.engine.set_execution_timer_config(timer(rest));
            match self.engine.eval_rule(format!("data.{rule}")) {
                Ok(value) => values.push((rule, value)),
                Err(error) if matches!(error.downcast_ref(), Some(LimitError::TimeLimitExceeded { .. })) => {
                    return Verdict::Denied(Denial::TimedOut);
                }
                Err(error) => return Verdict::Denied(Denial::Failed(said(&error))),
            }
        }
        // What speaks against a kit says more than that nothing speaks for it.
        let verdicts = values.into_iter().rev().map(|(rule, value)| if rule == DENY { silent(&value) } else { is_true(rule, &value) });
        verdicts.collect::<Result<Vec<()>, Denial>>().map_or_else(Verdict::Denied, |_| Verdict::Allowed)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({})", self.dialect.rule())
    }
}

fn is_true(rule: &'static str, value: &Value) -> Result<(), Denial> {
    match value {
        Value::Bool(true) => Ok(()),
        Value::Undefined => Err(Denial::Undefined { rule }),
        other => Err(Denial::NotTrue { rule, value: shown(other) }),
    }
}

fn silent(value: &Value) -> Result<(), Denial> {
    let messages: Vec<&Value> = match value {
        Value::Set(messages) => messages.iter().collect(),
        Value::Array(messages) => messages.iter().collect(),
        Value::Undefined => return Err(Denial::Undefined { rule: DENY }),
        other => return Err(Denial::NoMessages { rule: DENY, value: shown(other) }),
    };
    if messages.is_empty() {
        return Ok(());
    }
    Err(Denial::Messages(messages.into_iter().take(limits::REGO_MESSAGES).map(shown).collect()))
}

/// A value as a denial shows it.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.to_string(),
        other => serde_json::to_string(other).unwrap_or_else(|_| "no JSON".into()),
    };
    text.chars().take(SHOWN).collect()
}

fn timer(limit: Duration) -> ExecutionTimerConfig {
    const INTERVAL: NonZeroU32 = NonZeroU32::new(limits::REGO_CHECK_STEPS).expect("it is not 0");
    ExecutionTimerConfig { limit, check_interval: INTERVAL }
}

/// Bytes of memory that this process has, or 0 where nobody says.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// The package that a text begins with, after white space and comments.
fn package(text: &str) -> Option<&str> {
    let line = text.lines().map(str::trim_start).find(|line| !line.is_empty() && !line.starts_with('#'))?;
    let rest = line.strip_prefix("package").filter(|rest| rest.starts_with([' ', '\t']))?;
    rest.trim_start().split([' ', '\t', '#', ';', '\r']).next().filter(|package| !package.is_empty())
}

/// What regorus says, without the excerpt that it draws.
fn said(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.trim_start_matches("error: ").chars().take(SHOWN).collect()
}

fn located(error: &dyn fmt::Display) -> RegoError {
    let text = error.to_string();
    let place = text.lines().find_map(|line| line.trim_start().strip_prefix("--> ")?.strip_prefix(SOURCE)?.strip_prefix(':'));
    let line = place.and_then(|place| place.split(':').next()?.parse().ok());
    match line {
        Some(line) => RegoError::Line { line, what: said(error) },
        None => RegoError::Whole(said(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mount(body: &str) -> Rule {
        let text = format!("package modelkit.mount\n{body}");
        Rule::compile(Place::Policy, &text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn the_package_decides_the_dialect_and_where_it_may_stand() {
        use Place::{Attestation, Policy};
        for (place, text, dialect) in [
            (Attestation, "package signature\nallow { input.x }", Dialect::Cosign),
            (Attestation, "# a\n\n  package signature # b\nallow { true }", Dialect::Cosign),
            (Attestation, "package sigstore\nisCompliant { input.x }", Dialect::PolicyController),
            (Policy, "package sigstore\ndefault isCompliant = false\nisCompliant { input.x }", Dialect::PolicyController),
            (Policy, "package modelkit.mount\nallow if input.x", Dialect::ModelKit),
            (Attestation, "package signature\nimport future.keywords.in\nallow { 1 in [1] }", Dialect::Cosign),
        ] {
            let rule = Rule::compile(place, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(rule.dialect(), dialect, "{text}");
        }
        for (place, package) in [
            (Policy, "signature"),
            (Attestation, "modelkit.mount"),
            (Policy, "modelkit"),
            (Policy, "modelkit.mounts"),
            (Attestation, "main"),
        ] {
            let text = format!("package {package}\nallow := true\nisCompliant := true");
            let error = Rule::compile(place, &text).expect_err(&text);
            assert_eq!(error, RegoError::Package { package: package.into(), expected: place.expected() });
        }
    }

    #[test]
    fn what_is_wrong_is_found_when_it_is_loaded_and_where() {
        use Place::{Attestation, Policy};
        for text in ["", "# nothing", "allow := true", "packages x", "package"] {
            assert!(matches!(Rule::compile(Policy, text), Err(RegoError::NoPackage { .. })), "{text}: {:?}", Rule::compile(Policy, text));
        }
        for (place, text, line) in [
            (Policy, "package modelkit.mount\n\nallow { true }", 3),
            (Attestation, "package signature\nallow if true", 2),
            (Policy, "package modelkit.mount\nallow if {\n  x ==\n}", 4),
            (Policy, "package modelkit.mount\nallow if x", 2),
            (Policy, "package modelkit.mount\nallow := true\nallow := false := x", 3),
        ] {
            let error = Rule::compile(place, text).expect_err(text);
            assert!(matches!(&error, RegoError::Line { line: found, .. } if *found == line), "{text}: {error:?}");
        }
        for (place, text) in [
            (Policy, "package modelkit.mount\ndeny contains \"x\" if false"),
            (Attestation, "package sigstore\nallow { true }"),
            (Attestation, "package signature\nallowed { true }"),
        ] {
            assert!(matches!(Rule::compile(place, text), Err(RegoError::NoRule(_))), "{text}: {:?}", Rule::compile(place, text));
        }
    }

    #[test]
    fn only_true_and_nothing_against_it_admits() {
        for (body, expected) in [
            ("allow := true", "allowed"),
            ("default allow := false\nallow if input.x == 1", "allowed"),
            ("default allow := false\nallow if input.x == 2", "`modelkit.mount.allow` is false, not true"),
            ("allow if input.x == 2", "`modelkit.mount.allow` is undefined for this input"),
            ("allow if input.none.at.all", "`modelkit.mount.allow` is undefined for this input"),
            ("allow := 1", "`modelkit.mount.allow` is 1, not true"),
            ("allow := \"true\"", "`modelkit.mount.allow` is true, not true"),
            ("allow := null", "`modelkit.mount.allow` is null, not true"),
            ("allow contains true", "`modelkit.mount.allow` is [true], not true"),
            ("allow := true\ndeny contains \"no\" if input.x == 2", "allowed"),
            ("allow := true\ndeny contains \"no\" if input.x == 1", "no"),
            ("allow := false\ndeny contains \"no\" if input.x == 1\ndeny contains \"never\"", "never; no"),
            ("allow := true\ndeny contains {\"a\": 1} if input.x == 1", "{\"a\":1}"),
            ("allow := true\ndeny := []", "allowed"),
            ("allow := true\ndeny := [\"no\"]", "no"),
            ("allow := true\ndeny := false", "`modelkit.mount.deny` is false, where a set of messages was expected"),
            ("allow := true\ndeny := {}", "`modelkit.mount.deny` is {}, where a set of messages was expected"),
            ("allow := true\ndeny := {\"x\"} if input.x == 2", "`modelkit.mount.deny` is undefined for this input"),
        ] {
            let verdict = match mount(body).evaluate(&json!({"x": 1})) {
                Verdict::Allowed => "allowed".to_owned(),
                Verdict::Denied(denial) => denial.to_string(),
            };
            assert_eq!(verdict, expected, "{body}");
        }
    }

    #[test]
    fn errors_of_builtins_deny() {
        for body in [
            "allow if not time.parse_rfc3339_ns(\"yesterday\") > 0",
            "allow if not to_number(\"x\")",
            "allow := true\ndeny contains \"x\" if to_number(\"x\")",
            "allow := true if 1 / 0 != 2",
            "allow := true if input.x\nallow := false if input.x",
        ] {
            let verdict = mount(body).evaluate(&json!({"x": 1}));
            assert!(matches!(verdict, Verdict::Denied(Denial::Failed(_))), "{body}: {verdict:?}");
        }
    }

    #[test]
    fn nothing_reaches_the_network_or_the_environment() {
        for call in [
            "http.send({\"method\": \"GET\", \"url\": \"http://localhost\"})",
            "opa.runtime()",
            "net.lookup_ip_addr(\"localhost\")",
            "nothing(1)",
        ] {
            let name = call.split('(').next().unwrap_or_default();
            for body in
                [format!("allow if {call}"), format!("allow if not {call}"), format!("allow := true\ndeny contains \"x\" if {call}")]
            {
                let text = format!("package modelkit.mount\n{body}");
                let line = text.lines().position(|line| line.contains(call)).expect("a line") + 1;
                let expected = RegoError::NoFunction { line, function: name.to_owned() };
                assert_eq!(Rule::compile(Place::Policy, &text).expect_err(&body), expected, "{body}");
            }
        }
    }

    #[test]
    fn a_function_that_there_is_not_is_found_wherever_it_is_called() {
        for known in [
            "f(x) := x\nallow if f(1) == data.modelkit.mount.f(1)",
            "import data.modelkit.mount as m\ndefault f(_) := 1\nallow if m.f(1) == 1",
            "a.b(x) := x\nallow if a.b(1) == 1",
            "allow if every x in [1] { abs(x) == 1 }",
            "allow if { print(1); time.now_ns() > 0 }",
        ] {
            mount(known);
        }
        for unknown in [
            "allow if { some x in [nothing(1)]; x }",
            "allow if every x in [1] { nothing(x) }",
            "allow if { x := {\"a\": [nothing(1)]}; x }",
            "allow if { count({y | y := nothing(1)}) == 0 }",
            "allow if { count([nothing(x) | x := 1]) == 0 }",
            "allow if input[nothing(1)]",
            "allow if -nothing(1) == 1",
            "allow if not nothing(1)",
            "allow if 1 in nothing(1)",
            "allow if input.x with input as nothing(1)",
            "allow if abs(nothing(1)) == 1",
            "allow := nothing(1)",
            "allow := true if { 1 == 2 } else := nothing(1)",
            "default allow := false\nf(x) := nothing(x)\nallow if f(1)",
            "allow := true\ndeny contains nothing(1)",
            "allow if m[1]\nm[x] := 2 if x := nothing(1)",
        ] {
            let error = Rule::compile(Place::Policy, &format!("package modelkit.mount\n{unknown}")).expect_err(unknown);
            assert!(matches!(&error, RegoError::NoFunction { function, .. } if function == "nothing"), "{unknown}: {error}");
        }
        let long = format!("allow if {} == 1", ["1"; 300].join(" + "));
        let text = format!("package modelkit.mount\n{}", long.replace("+ 1 ==", "+ nothing(1) =="));
        assert!(Rule::compile(Place::Policy, &text).is_err(), "however deep it stands");
    }

    #[test]
    fn it_is_known_whether_a_rule_could_read_where_it_would_be_mounted() {
        for (body, reads) in [
            ("allow if startswith(input.mount.path, \"/a\")", true),
            ("allow if input[\"mount\"][\"path\"]", true),
            ("allow if input.mount[\"uid\"] == 0", false),
            ("allow if input.mount.uid == 0", false),
            ("allow if { m := input.mount; m.uid == 0 }", true),
            ("allow if { some x; input.mount[x] }", true),
            ("allow if { some x; input[x].path }", true),
            ("allow if { some x; input[x].uid }", false),
            ("import input.mount as m\nallow if m.path", true),
            ("allow if count(input) == 1", true),
            ("allow if data.mount.path", false),
            ("allow if input.signatures[0].mount.path", false),
            ("# input.mount.path\nallow if input.digest == \"input.mount.path\"", false),
            ("f(x) := x.uid\nallow if f(input.mount)", true),
        ] {
            assert_eq!(mount(body).reads_mount_path(), reads, "{body}");
        }
        let statement = "package signature\nallow { input.mount.path }";
        assert!(!Rule::compile(Place::Attestation, statement).expect("a rule").reads_mount_path(), "a statement has none");
    }

    #[test]
    fn a_rule_keeps_to_its_time_and_its_memory() {
        let began = Instant::now();
        let slow = mount("allow if count([1 | some a in numbers.range(1, 4000); some b in numbers.range(1, 4000); a == b]) == 4000");
        assert_eq!(slow.evaluate(&json!({})), Verdict::Denied(Denial::TimedOut));
        // Generous, since other tests run beside: without a limit it takes many seconds.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        let began = Instant::now();
        // A smaller limit than that of others, which run beside in the same process and would see the memory, too.
        let large = mount("allow if count(numbers.range(1, 8000000)) == 8000000");
        let verdict = large.evaluate_within(32 << 20, &json!({}));
        assert!(matches!(verdict, Verdict::Denied(Denial::Memory { .. } | Denial::TimedOut)), "{verdict:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }

    #[test]
    fn a_rule_is_the_same_each_time() {
        let rule = mount("default allow := false\nallow if input.x == 1");
        for (x, allowed) in [(1, true), (2, false), (1, true)] {
            assert_eq!(rule.evaluate(&json!({"x": x})) == Verdict::Allowed, allowed);
        }
    }
}
