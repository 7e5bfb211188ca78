//! Pins as Python names them.

use crate::connection::seconds;
use crate::errors::Failure;
use kvhive_protocol::{ClusterMap, PinMode};
use std::time::{SystemTime, UNIX_EPOCH};

/// One pin: its name, its tenant's, how many blocks, when it ends in seconds since 1970, why it stands.
type Listed = (String, String, usize, Option<f64>, String);

/// Returns how long a pin stands.
pub(crate) fn mode(lasts: Option<f64>) -> Result<PinMode, Failure> {
    let Some(lasts) = lasts else { return Ok(PinMode::Hard) };
    let until = SystemTime::now() + seconds("lasts", lasts)?;
    let since = until
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Failure::misuse("this machine's clock is before 1970"))?;
    Ok(PinMode::Soft { until_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) })
}

/// Lists a map's pins.
pub(crate) fn list(map: &ClusterMap) -> Vec<Listed> {
    let listed = map.pins.iter().map(|(name, pin)| {
        let tenant = map.tenants.get(&pin.tenant).map(|tenant| tenant.name.clone()).unwrap_or_default();
        let until = pin.ends_ms().map(|until| until as f64 / 1e3);
        (name.clone(), tenant, pin.keys.len(), until, pin.reason.to_string())
    });
    listed.collect()
}
