//! A chart of a case: for each metric, bars of the ratio to the baseline. The labels are SVG text, so no font is
//! needed.

use crate::case::Better;
use crate::report::{Report, number};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

const BAR: i32 = 16;
const GAP: i32 = 30;
const LEFT: i32 = 270;
const RIGHT: i32 = 230;
const SCALE: i32 = 420;
const TOP: i32 = 72;
const FONT: &str = "sans-serif";

/// Draws it.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(report: &Report, file: &Path) -> Result<()> {
    let (paths, metrics) = (report.paths.len() as i32, report.metrics.len() as i32);
    let size = ((LEFT + SCALE + RIGHT) as u32, (TOP + metrics * (paths * BAR + GAP) + 16) as u32);
    let area = SVGBackend::new(file, size).into_drawing_area();
    let paint = |why: DrawingAreaErrorKind<_>| -> anyhow::Error { anyhow!("chart: {why}") };
    area.fill(&WHITE).map_err(paint)?;
    let small = |h| TextStyle::from((FONT, 12)).pos(Pos::new(h, VPos::Center));
    let baseline = report.paths.first().map_or("", String::as_str);
    let title = TextStyle::from((FONT, 16));
    area.draw(&Text::new(format!("{}: {}", report.case, report.about), (12, 12), title)).map_err(paint)?;
    let note = format!("length: ratio to \"{baseline}\"; text: ratio, median; *: too much else used the CPUs");
    for (line, y) in [(note, 34), (report.measured(), 50)] {
        area.draw(&Text::new(line, (12, y), TextStyle::from((FONT, 12)))).map_err(paint)?;
    }

    let ratios = report.rows.iter().filter_map(|r| r.figure.ratio);
    let longest = ratios.fold(1.0_f64, f64::max);
    let mut y = TOP;
    for metric in &report.metrics {
        let way = if metric.better == Better::Higher { "more" } else { "less" };
        let head = format!("{}, {} ({way} is better)", metric.name, metric.unit);
        area.draw(&Text::new(head, (12, y + GAP - 18), TextStyle::from((FONT, 13)))).map_err(paint)?;
        y += GAP;
        // The line where the baseline ends: longer bars have more.
        let one = LEFT + (f64::from(SCALE) / longest) as i32;
        let height = paths * BAR;
        area.draw(&PathElement::new(vec![(one, y), (one, y + height)], RGBColor(215, 215, 215))).map_err(paint)?;
        for (i, path) in report.paths.iter().enumerate() {
            let middle = y + BAR / 2;
            area.draw(&Text::new(path.clone(), (LEFT - 8, middle), small(HPos::Right))).map_err(paint)?;
            let row = report.row(path, metric);
            let ratio = row.and_then(|r| r.figure.ratio).unwrap_or_default();
            let end = LEFT + (f64::from(SCALE) * ratio / longest) as i32;
            let colour = if path.contains("pv-net") { RGBColor(0, 114, 178) } else { grey(i) };
            area.draw(&Rectangle::new([(LEFT, y + 2), (end.max(LEFT + 1), y + BAR - 2)], colour.filled()))
                .map_err(paint)?;
            let said = match row {
                Some(row) => {
                    let star = if row.figure.disturbed { "*" } else { "" };
                    format!("{ratio:.2}{star} · {} {}", number(row.figure.median), short(metric.unit))
                }
                None => "failed".to_owned(),
            };
            area.draw(&Text::new(said, (end + 6, middle), small(HPos::Left))).map_err(paint)?;
            y += BAR;
        }
    }
    area.present().map_err(paint)
}

/// The unit without the words that the metric's name has already.
fn short(unit: &str) -> &str {
    if unit.starts_with("ms ") { "ms" } else { unit }
}

fn grey(i: usize) -> RGBColor {
    if i == 0 { RGBColor(90, 90, 90) } else { RGBColor(170, 170, 170) }
}
