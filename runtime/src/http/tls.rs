//! What is measured of TLS, by the same names on every listener.

use kvhive_tls::Tls;

/// Records into the recorder that is in charge.
pub fn record_tls(tls: &Tls) {
    let figures = tls.figures();
    metrics::gauge!("kvhive_tls_certificate_expires_seconds").set(figures.expires as f64);
    metrics::gauge!("kvhive_tls_files_refused").set(f64::from(u8::from(figures.files_refused)));
    metrics::counter!("kvhive_tls_reloads_total").absolute(figures.reloads);
    metrics::counter!("kvhive_tls_reload_failures_total").absolute(figures.failed_reloads);
    for (reason, count) in [
        ("plain", figures.refused_plain),
        ("no_certificate", figures.refused_without_certificate),
        ("untrusted", figures.refused_untrusted),
        ("other", figures.refused_other),
    ] {
        metrics::counter!("kvhive_tls_handshakes_refused_total", "reason" => reason).absolute(count);
    }
}
