//! The metrics of a program.
//!
//! A [`List`] makes each of them by one call, which names it, documents it and exposes
//! it: nothing that is documented can be missing, and nothing can be exposed that is not
//! documented.

use std::{array, fmt};

use prometheus_client::{
    encoding::{EncodeMetric, text},
    metrics::{
        TypedMetric,
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};

/// Bounds of what takes fractions of a second, in seconds.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A number that goes up and down, with a fraction.
pub type Level = Gauge<f64, std::sync::atomic::AtomicU64>;
/// A number that grows, with a fraction.
pub type Sum = Counter<f64, std::sync::atomic::AtomicU64>;

/// What kind of metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from the start of the process.
    Counter,
    /// It is what is now.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

/// A metric, as it is documented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its name, as it is exposed.
    pub name: String,
    /// What kind it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: Vec<&'static str>,
    /// What it says, and what its labels can be, in a line.
    pub meaning: &'static str,
}

impl Row {
    /// What it is measured in, which its name says; empty if it is a count.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        let name = self.name.trim_end_matches("_total");
        ["seconds", "bytes"]
            .into_iter()
            .find(|unit| name.ends_with(unit))
            .unwrap_or("")
    }
}

/// The values of labels, each with its name.
type Labels<const N: usize> = [(&'static str, String); N];

/// A metric for every combination of values of its labels.
#[derive(Debug)]
pub struct Labelled<const N: usize, M> {
    names: [&'static str; N],
    family: Family<Labels<N>, M, fn() -> M>,
}

impl<const N: usize, M: Clone> Labelled<N, M>
where
    fn() -> M: MetricConstructor<M>,
{
    /// The one of these values.
    #[must_use]
    pub fn of(&self, values: [&str; N]) -> M {
        let labels = array::from_fn(|at| (self.names[at], values[at].to_owned()));
        self.family.get_or_create_owned(&labels)
    }

    /// With these there from the start, so that the first of each is seen as one.
    #[must_use]
    pub fn from_zero(self, values: impl IntoIterator<Item = [&'static str; N]>) -> Self {
        for values in values {
            let _ = self.of(values);
        }
        self
    }

    /// Forgets all of them, before those are set that there are now.
    pub fn clear(&self) {
        self.family.clear();
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct List {
    prefix: &'static str,
    registry: Registry,
    rows: Vec<Row>,
}

impl List {
    /// No metric; the name of each will begin with that and an underscore.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            registry: Registry::default(),
            rows: Vec::new(),
        }
    }

    /// With a counter; its name ends with `_total`, which is not given here.
    pub fn counter(&mut self, name: &str, meaning: &'static str) -> Counter {
        self.add(name, Kind::Counter, &[], meaning, Counter::default())
    }

    /// With a counter for each value of its labels.
    pub fn counters<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        meaning: &'static str,
    ) -> Labelled<N, Counter> {
        self.labelled(name, Kind::Counter, labels, meaning, Counter::default)
    }

    /// With a counter of what has a fraction, for each value of its labels.
    pub fn sums<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        meaning: &'static str,
    ) -> Labelled<N, Sum> {
        self.labelled(name, Kind::Counter, labels, meaning, Sum::default)
    }

    /// With a gauge.
    pub fn gauge(&mut self, name: &str, meaning: &'static str) -> Level {
        self.add(name, Kind::Gauge, &[], meaning, Level::default())
    }

    /// With a gauge for each value of its labels.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        meaning: &'static str,
    ) -> Labelled<N, Level> {
        self.labelled(name, Kind::Gauge, labels, meaning, Level::default)
    }

    /// With a histogram of times; its name ends with `_seconds`.
    pub fn histogram(&mut self, name: &str, meaning: &'static str) -> Histogram {
        self.add(name, Kind::Histogram, &[], meaning, times())
    }

    /// With a histogram of times for each value of its labels.
    pub fn histograms<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        meaning: &'static str,
    ) -> Labelled<N, Histogram> {
        self.labelled(name, Kind::Histogram, labels, meaning, times)
    }

    /// What is documented, in order.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// What is documented, as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| name | type | labels | unit | meaning |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let labels: Vec<_> = row.labels.iter().map(|name| format!("`{name}`")).collect();
            text.push_str(&format!(
                "| `{}` | {} | {} | {} | {} |\n",
                row.name,
                row.kind,
                labels.join(", "),
                row.unit(),
                row.meaning
            ));
        }
        text
    }

    /// What is counted and measured now, as OpenMetrics text.
    ///
    /// # Errors
    ///
    /// Something cannot be written, which all that this makes can.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn labelled<const N: usize, M>(
        &mut self,
        name: &str,
        kind: Kind,
        labels: [&'static str; N],
        meaning: &'static str,
        new: fn() -> M,
    ) -> Labelled<N, M>
    where
        M: EncodeMetric + TypedMetric + fmt::Debug + Send + Sync + 'static,
        fn() -> M: MetricConstructor<M>,
    {
        let family = Family::new_with_constructor(new);
        self.add(name, kind, &labels, meaning, family.clone());
        Labelled {
            names: labels,
            family,
        }
    }

    fn add<M: Metric + Clone>(
        &mut self,
        name: &str,
        kind: Kind,
        labels: &[&'static str],
        meaning: &'static str,
        metric: M,
    ) -> M {
        let name = format!("{}_{name}", self.prefix);
        self.registry
            .register(name.clone(), meaning, metric.clone());
        self.rows.push(Row {
            name: match kind {
                Kind::Counter => format!("{name}_total"),
                Kind::Gauge | Kind::Histogram => name,
            },
            kind,
            labels: labels.to_vec(),
            meaning,
        });
        metric
    }
}

fn times() -> Histogram {
    Histogram::new(SECONDS)
}

/// What a text of metrics has: their names, with what each is.
#[must_use]
pub fn exposed(text: &str) -> Vec<(String, String)> {
    let described = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    described
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| match kind {
            "counter" => (format!("{name}_total"), kind.to_owned()),
            _ => (name.to_owned(), kind.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_documented_and_exposed_under_one_name() {
        let mut list = List::new("shop");
        let sold = list.counters("sold", ["what"], "Sales, by what was sold");
        let open = list.gauge("open", "1 while it is open");
        let served = list.histogram("served_seconds", "How long a customer waited");
        let moved = list.sums("moved_bytes", ["way"], "What was moved");
        sold.of(["bread"]).inc_by(2);
        open.set(1.0);
        served.observe(0.2);
        moved.of(["in"]).inc_by(1.5);

        let text = list.text().unwrap();
        for line in [
            "shop_sold_total{what=\"bread\"} 2",
            "shop_open 1.0",
            "shop_served_seconds_bucket{le=\"0.25\"} 1",
            "shop_moved_bytes_total{way=\"in\"} 1.5",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let documented: Vec<_> = list
            .rows()
            .iter()
            .map(|row| (row.name.clone(), row.kind.to_string()))
            .collect();
        assert_eq!(exposed(&text), documented);
        let units: Vec<_> = list.rows().iter().map(Row::unit).collect();
        assert_eq!(units, ["", "", "seconds", "bytes"]);
        assert!(
            list.markdown()
                .contains("| `shop_sold_total` | counter | `what` |  | Sales, by what was sold |")
        );
    }

    #[test]
    fn what_is_gone_is_not_exposed_any_more() {
        let mut list = List::new("shop");
        let there = list.gauges("there", ["who"], "Who is there");
        there.of(["bob"]).set(1.0);
        there.clear();
        there.of(["eve"]).set(1.0);
        let text = list.text().unwrap();
        assert!(!text.contains("bob") && text.contains("eve"), "{text}");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_line() {
        let mut list = List::new("shop");
        list.counters("sold", ["what"], "Sales")
            .of(["a\"} 9\n# EOF\n"])
            .inc();
        let text = list.text().unwrap();
        assert_eq!(text.lines().filter(|line| *line == "# EOF").count(), 1);
    }
}
