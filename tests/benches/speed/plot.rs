//! Results as pictures: bars side by side, a group for each place.

use std::path::Path;

use anyhow::{Error, Result};
use plotters::prelude::{
    BLACK, ChartBuilder, Color as _, IntoDrawingArea as _, IntoFont as _, PathElement, RGBColor, Rectangle,
    SVGBackend, SeriesLabelPosition, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::row::Outcome;

/// A picture of all groups of one quantity in which these have their turn.
struct Chart {
    file: &'static str,
    quantity: &'static str,
    subjects: &'static [&'static str],
}

const CHARTS: [Chart; 5] = [
    Chart { file: "packets.svg", quantity: "packets", subjects: &["bare", "sketch", "lb"] },
    Chart { file: "kernel.svg", quantity: "packets", subjects: &["iptables", "nft map", "lb"] },
    Chart { file: "connections.svg", quantity: "new connections", subjects: &["iptables", "nft map", "lb"] },
    Chart { file: "delay.svg", quantity: "delay", subjects: &["bare", "iptables", "lb"] },
    Chart { file: "http.svg", quantity: "HTTP requests", subjects: &["routed", "lb", "HAProxy"] },
];

/// One for each place in a group.
const COLOURS: [RGBColor; 3] = [RGBColor(160, 160, 160), RGBColor(230, 159, 0), RGBColor(0, 90, 160)];
const LB: RGBColor = COLOURS[2];

const GROUP_WIDTH: u32 = 170;
const HEIGHT: u32 = 320;
/// Of the width of a group, what its bars take.
const FILLED: f64 = 0.8;

/// Draws what there is anything of; returns the files' names.
pub(crate) fn draw(outcomes: &[Outcome], directory: &Path) -> Result<Vec<&'static str>> {
    let mut drawn = Vec::new();
    for chart in CHARTS {
        let fits = |outcome: &&Outcome| {
            let names = outcome.subjects.iter().map(|figures| figures.name.as_str());
            outcome.quantity == chart.quantity && names.eq(chart.subjects.iter().copied())
        };
        let groups: Vec<_> = outcomes.iter().filter(fits).collect();
        if !groups.is_empty() {
            chart
                .draw(&groups, &directory.join(chart.file))
                .map_err(|error| Error::msg(format!("cannot draw {}: {error}", chart.file)))?;
            drawn.push(chart.file);
        }
    }
    Ok(drawn)
}

impl Chart {
    fn draw(&self, groups: &[&Outcome], file: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let count = u32::try_from(groups.len())?;
        let area = SVGBackend::new(file, (120 + GROUP_WIDTH * count.max(2), HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let highest = groups.iter().flat_map(|group| &group.subjects).map(|figures| figures.absolute.highest);
        let top = highest.fold(0.0, f64::max) * 1.5;
        let unit = groups.first().map_or("", |group| group.unit);
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{}, {unit}", self.quantity), ("sans-serif", 22))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..f64::from(count), 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .light_line_style(WHITE)
            .y_labels(6)
            .draw()?;
        let width = FILLED / f64::from(u32::try_from(self.subjects.len())?);
        for (number, (subject, colour)) in (0_u32..).zip(self.subjects.iter().zip(COLOURS)) {
            let colour = if *subject == "lb" { LB } else { colour };
            let mut bars = Vec::new();
            for (group, left) in groups.iter().zip(0_u32..) {
                let Some(figures) = group.subjects.iter().find(|figures| figures.name == *subject) else {
                    continue;
                };
                let left = f64::from(left) + (1.0 - FILLED) / 2.0 + f64::from(number) * width;
                bars.push((left, left + width * 0.92, figures.absolute));
            }
            chart
                .draw_series(bars.iter().map(|(left, right, value)| {
                    Rectangle::new([(*left, 0.0), (*right, value.median)], colour.filled())
                }))?
                .label(*subject)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
            // From the lowest to the highest.
            chart.draw_series(bars.iter().map(|(left, right, value)| {
                let middle = f64::midpoint(*left, *right);
                PathElement::new(vec![(middle, value.lowest), (middle, value.highest)], BLACK)
            }))?;
            let style =
                ("sans-serif", 15).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Bottom));
            let digits = groups.first().map_or(0, |group| group.digits);
            chart.draw_series(bars.iter().map(|(left, right, value)| {
                let at = (f64::midpoint(*left, *right), value.highest + top * 0.01);
                Text::new(format!("{:.digits$}", value.median), at, style.clone())
            }))?;
        }
        let style = ("sans-serif", 16).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
        let places: Vec<_> = groups
            .iter()
            .zip(0_u32..)
            .map(|(group, left)| (group.place.clone(), chart.backend_coord(&(f64::from(left) + 0.5, 0.0))))
            .collect();
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(WHITE)
            .background_style(WHITE)
            .label_font(("sans-serif", 16))
            .draw()?;
        drop(chart);
        for (place, (x, y)) in places {
            area.draw(&Text::new(place, (x, y + 8), style.clone()))?;
        }
        area.present()?;
        Ok(())
    }
}
