//! Failures as Python's exceptions: one class of `kvhive.errors` for each thing that a caller may do differently.

use kvhive_client::ClientError;
use kvhive_coordinator::AloneError;
use kvhive_node::{NodeError, PersistError};
use kvhive_protocol::WireError;
use kvhive_tls::TlsError;
use kvhive_wire::Fault;
use pyo3::exceptions::{PyOverflowError, PyRuntimeError};
use pyo3::prelude::*;
use std::fmt;
use std::sync::Arc;

/// Which class is raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Misuse,
    BadBuffer,
    BufferInUse,
    Gpu,
    Unreachable,
    Unauthorized,
    Refused,
    Busy,
    UnknownTenant,
    Tls,
    Closed,
    Node,
    NodeSetup,
    Persist,
    /// A value of a type that is not allowed.
    WrongType,
    /// A number that is not allowed.
    OutOfRange,
    /// Python's own `RuntimeError`.
    Runtime,
}

impl Kind {
    /// Returns the name of the class, in `kvhive.errors` unless it is Python's own.
    fn class(self) -> &'static str {
        match self {
            Kind::Misuse => "MisuseError",
            Kind::BadBuffer => "BadBufferError",
            Kind::BufferInUse => "BufferInUseError",
            Kind::Gpu => "GpuError",
            Kind::Unreachable => "UnreachableError",
            Kind::Unauthorized => "UnauthorizedError",
            Kind::Refused => "RefusedError",
            Kind::Busy => "BusyError",
            Kind::UnknownTenant => "UnknownTenantError",
            Kind::Tls => "TlsError",
            Kind::Closed => "ClosedError",
            Kind::Node => "NodeError",
            Kind::NodeSetup => "NodeSetupError",
            Kind::Persist => "PersistError",
            Kind::WrongType => "WrongTypeError",
            Kind::OutOfRange => "OutOfRangeError",
            Kind::Runtime => "RuntimeError",
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    /// What code of Python's has raised.
    raised: Option<Arc<PyErr>>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: String) -> Failure {
        Failure { kind, message, raised: None }
    }

    pub(crate) fn misuse(message: impl Into<String>) -> Failure {
        Failure::new(Kind::Misuse, message.into())
    }

    /// Makes one of what code of Python's has raised, which is raised again as it is.
    pub(crate) fn raised(error: PyErr) -> Failure {
        Failure {
            raised: Some(Arc::new(error)),
            ..Failure::new(Kind::Runtime, "the model failed".to_owned())
        }
    }

    /// Makes it one of another kind.
    pub(crate) fn of_kind(self, kind: Kind) -> Failure {
        Failure { kind, ..self }
    }

    /// Makes the exception.
    pub(crate) fn raise(self, py: Python<'_>) -> PyErr {
        if let Some(raised) = self.raised {
            return raised.clone_ref(py);
        }
        if self.kind == Kind::Runtime {
            return PyRuntimeError::new_err(self.message);
        }
        let make = || py.import("kvhive.errors")?.getattr(self.kind.class())?.call1((self.message,));
        make().map_or_else(|error| error, PyErr::from_value)
    }
}

/// Takes a whole number that `what` names.
pub(crate) fn whole(what: &str, given: &Bound<'_, PyAny>, (least, most): (u32, u32)) -> PyResult<u32> {
    let refused = |kind| {
        let shown = given.repr().map_or_else(|_| given.get_type().to_string(), |repr| repr.to_string());
        let shown = shortened(shown);
        let message = format!("{what} {shown}: allowed is a whole number from {least} to {most}");
        Failure::new(kind, message).raise(given.py())
    };
    let number = given.extract::<i64>().map_err(|error| {
        let is_number = error.is_instance_of::<PyOverflowError>(given.py());
        refused(if is_number { Kind::OutOfRange } else { Kind::WrongType })
    })?;
    let number = u32::try_from(number).ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| refused(Kind::OutOfRange))
}

/// Keeps what is shown of a value short.
fn shortened(mut shown: String) -> String {
    if let Some((end, _)) = shown.char_indices().nth(80) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

fn of_wire(error: &WireError) -> Kind {
    match error {
        WireError::Unauthorized | WireError::Forbidden { .. } => Kind::Unauthorized,
        WireError::Busy { .. } => Kind::Busy,
        WireError::UnknownTenant { .. } => Kind::UnknownTenant,
        WireError::TlsRequired => Kind::Tls,
        WireError::Deadline | WireError::NotLeader { .. } | WireError::NoLease => Kind::Unreachable,
        _ => Kind::Refused,
    }
}

fn of_fault(fault: &Fault) -> Kind {
    match fault {
        Fault::Refused(error) => of_wire(error),
        Fault::Tls(_) => Kind::Tls,
        Fault::Impostor => Kind::Unauthorized,
        Fault::Protocol(_) => Kind::Refused,
        Fault::Closed | Fault::Io(_) | Fault::Timeout(_) | Fault::Overloaded => Kind::Unreachable,
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let kind = match &error {
            ClientError::Unreachable { .. } => Kind::Unreachable,
            ClientError::Refused(refused) => of_wire(refused),
            ClientError::Misuse(_) => Kind::Misuse,
            ClientError::UnknownTenant(_) => Kind::UnknownTenant,
            ClientError::Connection(fault) => of_fault(fault),
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Failure {
        Failure::new(Kind::Tls, error.to_string())
    }
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Failure {
        let kind = match &error {
            // What coordinators never take is as wrong as what is refused here.
            NodeError::Config(_) | NodeError::Refused(WireError::Rejected { .. }) => Kind::NodeSetup,
            NodeError::Refused(refused) => of_wire(refused),
            _ => Kind::Node,
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<AloneError> for Failure {
    fn from(error: AloneError) -> Failure {
        Failure::new(Kind::Node, error.to_string())
    }
}

impl From<PersistError> for Failure {
    fn from(error: PersistError) -> Failure {
        Failure::new(Kind::Persist, error.to_string())
    }
}
