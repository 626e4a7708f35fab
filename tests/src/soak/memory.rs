//! Resident memory of each process over time: as a table, as values, and as a picture.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

const MEBIBYTE: f64 = 1_048_576.0;
/// Growth from the third to the last quarter that is not called growth: caches fill, and a killed process starts small.
const GROWTH_RATIO_MAX: f64 = 1.2;
const GROWTH_MEBIBYTES_MAX: f64 = 16.0;

/// Seconds since the start, and mebibytes.
type Point = (f64, f64);

/// Measurements by the names of the processes.
#[derive(Debug, Default)]
pub(super) struct Memory(BTreeMap<String, Vec<Point>>);

impl Memory {
    /// Adds a measurement.
    pub(super) fn add(&mut self, process: &str, at: Duration, bytes: u64) {
        let point = (at.as_secs_f64(), bytes as f64 / MEBIBYTE);
        self.0.entry(process.to_owned()).or_default().push(point);
    }

    fn end(&self) -> f64 {
        self.0.values().flatten().map(|(at, _)| *at).fold(0.0, f64::max)
    }

    /// Highest value of a process within two parts of the whole time.
    fn highest(&self, points: &[Point], from: f64, to: f64) -> f64 {
        let (from, to) = (from * self.end(), to * self.end());
        points.iter().filter(|(at, _)| (from..=to).contains(at)).map(|(_, value)| *value).fold(0.0, f64::max)
    }

    /// Processes whose memory was not flat over the second half.
    pub(super) fn growing(&self) -> Vec<String> {
        let quarters = |points: &[Point]| (self.highest(points, 0.5, 0.75), self.highest(points, 0.75, 1.0));
        self.0
            .iter()
            .map(|(process, points)| (process, quarters(points)))
            .filter(|(_, (third, last))| *last > third * GROWTH_RATIO_MAX + GROWTH_MEBIBYTES_MAX)
            .map(|(process, (third, last))| format!("{process} grew from {third:.0} to {last:.0} MiB"))
            .collect()
    }

    /// The highest of each quarter, in MiB.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<14}{:>9}{:>9}{:>9}{:>9}   MiB, highest of each quarter\n", "process", 1, 2, 3, 4);
        for (process, points) in &self.0 {
            let _ = write!(text, "{process:<14}");
            for quarter in 0..4 {
                let from = f64::from(quarter) / 4.0;
                let _ = write!(text, "{:>9.1}", self.highest(points, from, from + 0.25));
            }
            text.push('\n');
        }
        text
    }

    /// Every measurement: process, seconds, MiB, separated by tabs.
    pub(super) fn values(&self) -> String {
        let mut text = "process\tseconds\tmebibytes\n".to_owned();
        for (process, points) in &self.0 {
            for (at, value) in points {
                let _ = writeln!(text, "{process}\t{at:.1}\t{value:.2}");
            }
        }
        text
    }

    /// A picture in SVG, one line a process.
    pub(super) fn svg(&self) -> String {
        const WIDTH: f64 = 900.0;
        const HEIGHT: f64 = 420.0;
        const LEFT: f64 = 60.0;
        const TOP: f64 = 20.0;
        let highest = self.0.values().flatten().map(|(_, value)| *value).fold(1.0, f64::max);
        let end = self.end().max(1.0);
        let x = |at: f64| LEFT + at / end * WIDTH;
        let y = |value: f64| TOP + HEIGHT - value / highest * HEIGHT;
        let mut svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1120\" height=\"480\" \
                       font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"1120\" height=\"480\" fill=\"white\"/>\n"
            .to_owned();
        for part in 0..=4 {
            let (value, at) = (highest * f64::from(part) / 4.0, end * f64::from(part) / 4.0);
            let _ = writeln!(
                svg,
                "<path d=\"M{LEFT} {0:.1}H{1:.1}\" stroke=\"#ddd\"/><text x=\"8\" y=\"{0:.1}\">{value:.0} MiB</text>\
                 <text x=\"{2:.1}\" y=\"460\">{at:.0} s</text>",
                y(value),
                LEFT + WIDTH,
                x(at),
            );
        }
        for (index, (process, points)) in self.0.iter().enumerate() {
            let color = format!("hsl({} 70% 45%)", index * 360 / self.0.len().max(1));
            let places: Vec<String> =
                points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
            let _ = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>\
                 <text x=\"975\" y=\"{}\" fill=\"{color}\">{process}</text>",
                places.join(" "),
                30 + index * 18,
            );
        }
        svg + "</svg>\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(value: impl Fn(u64) -> u64) -> Memory {
        let mut memory = Memory::default();
        for second in 0..=100 {
            memory.add("datanode-0", Duration::from_secs(second), value(second) << 20);
        }
        memory
    }

    #[test]
    fn memory_that_fills_and_stays_is_flat_and_memory_that_goes_on_is_not() {
        assert!(memory(|second| (second * 10).min(400)).growing().is_empty());
        assert_eq!(memory(|second| second * 10).growing(), ["datanode-0 grew from 750 to 1000 MiB"]);
        // Killed at 60 s, and started again.
        assert!(memory(|second| if second < 60 { 300 } else { 100 }).growing().is_empty());
    }

    #[test]
    fn the_table_the_values_and_the_picture_have_every_process() {
        let mut memory = memory(|second| second);
        memory.add("mount", Duration::from_secs(50), 7 << 20);
        assert!(memory.table().contains("datanode-0") && memory.table().contains("mount"));
        assert_eq!(memory.values().lines().count(), 1 + 101 + 1);
        let svg = memory.svg();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    }
}
