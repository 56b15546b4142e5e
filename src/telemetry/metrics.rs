//! Prometheus metrics, made when somebody asks from the counters that the workers write anyway.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::counters::{PortCounters, WorkerCounters};

/// One moment's figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Per worker, in the order of [`WorkerCounters::DESCRIPTIONS`].
    pub workers: Vec<Vec<u64>>,
    /// Network name and values in the order of [`PortCounters::DESCRIPTIONS`].
    pub ports: Vec<(String, Vec<u64>)>,
    /// Reason, direction, network (empty where none was known), count.
    pub drops: Vec<(&'static str, &'static str, String, u64)>,
    /// What is bounded.
    pub bounds: Vec<Bound>,
    /// Name, help and value of what is not a counter.
    pub gauges: Vec<(&'static str, &'static str, f64)>,
}

/// Something bounded, see `skybridge stats`.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Its name.
    pub name: &'static str,
    /// How much there is; `None` where the kernel does not tell.
    pub used: Option<f64>,
    /// How much there may be.
    pub limit: f64,
    /// The most that there was.
    pub high: Option<f64>,
}

/// The metrics of what is bounded, with their help.
pub const BOUNDS: [(&str, &str); 3] = [
    ("skybridge_limit", "How much there may be, by the name of what is bounded"),
    ("skybridge_limit_used", "How much there is now, by the name of what is bounded"),
    (
        "skybridge_limit_high",
        "The most that there was since the start, by the name of what is bounded",
    ),
];

/// Where the figures come from.
pub type Source = Arc<dyn Fn() -> Figures + Send + Sync>;

struct Adapter(Source);

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adapter")
    }
}

impl Collector for Adapter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = (self.0)();
        for (index, (name, _, help)) in WorkerCounters::DESCRIPTIONS.iter().enumerate() {
            let name = format!("skybridge_worker_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (worker, values) in figures.workers.iter().enumerate() {
                let labels = [("worker", worker.to_string())];
                let value = values.get(index).copied().unwrap_or(0);
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        for (index, (name, _, help)) in PortCounters::DESCRIPTIONS.iter().enumerate() {
            let name = format!("skybridge_network_{name}");
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (network, values) in &figures.ports {
                let labels = [("network", network.clone())];
                let value = values.get(index).copied().unwrap_or(0);
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "skybridge_drops",
            "Frames dropped, by reason, direction and network (empty where none was known)",
            None,
            MetricType::Counter,
        )?;
        for (reason, direction, network, count) in &figures.drops {
            let labels = [
                ("reason", (*reason).to_owned()),
                ("direction", (*direction).to_owned()),
                ("network", network.clone()),
            ];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let values: [fn(&Bound) -> Option<f64>; 3] =
            [|bound| Some(bound.limit), |bound| bound.used, |bound| bound.high];
        for ((name, help), value) in BOUNDS.iter().zip(values) {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for bound in &figures.bounds {
                if let Some(value) = value(bound) {
                    let labels = [("name", bound.name)];
                    ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        for (name, help, value) in &figures.gauges {
            let gauge = ConstGauge::new(*value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

/// The figures in the text format (OpenMetrics).
///
/// # Errors
/// Never in practice: writing to a string does not fail.
pub fn render(source: &Source) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Adapter(Arc::clone(source))));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Serves `GET /metrics` and `GET /healthz` until the process ends.
pub async fn serve(listener: tokio::net::TcpListener, source: Source) {
    use axum::http::{StatusCode, header};
    use axum::routing::get;
    let metrics = get(move || {
        let text = render(&source);
        async move {
            text.map(|text| {
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], text)
            })
            .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
        }
    });
    let router =
        axum::Router::new().route("/metrics", metrics).route("/healthz", get(|| async { "ok\n" }));
    if let Err(err) = axum::serve(listener, router).await {
        tracing::error!(%err, "metrics are no longer served");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_a_line_with_its_help() {
        let figures = Figures {
            workers: vec![vec![7; WorkerCounters::DESCRIPTIONS.len()]],
            ports: vec![("blue".to_owned(), vec![3; PortCounters::DESCRIPTIONS.len()])],
            drops: vec![("in_vni_unknown", "inbound", String::new(), 5)],
            bounds: vec![Bound { name: "learn_queue", used: None, limit: 9.0, high: Some(4.0) }],
            gauges: vec![("skybridge_generation", "Generation of the tables", 9.0)],
        };
        let source: Source = Arc::new(move || figures.clone());
        let text = render(&source).unwrap();
        for (name, _, _) in WorkerCounters::DESCRIPTIONS {
            let line = format!("skybridge_worker_{name}_total{{worker=\"0\"}} 7");
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
        assert!(text.contains("skybridge_network_frames_in_total{network=\"blue\"} 3"));
        assert!(text.contains("reason=\"in_vni_unknown\""));
        assert!(text.contains("skybridge_generation 9"));
        assert!(text.contains("skybridge_limit{name=\"learn_queue\"} 9"), "{text}");
        assert!(text.contains("skybridge_limit_high{name=\"learn_queue\"} 4"), "{text}");
        assert!(!text.contains("skybridge_limit_used{"), "{text}");
    }
}
