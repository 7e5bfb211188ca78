//! Hit rate against size as a picture: SVG by hand, one line a strategy over a logarithmic axis, the optimum as the ceiling.

use super::sweep::{Contender, Row, Size, beyond_the_optimum};
use crate::svg::{COLOURS, escape, put};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 210.0;
const TOP: f64 = 52.0;
const BOTTOM: f64 = 64.0;
/// Pixels between the names of two sizes.
const LABEL_GAP: f64 = 40.0;
/// One line of the picture.
struct Line<'a> {
    rows: &'a [Row],
    mean: f64,
}

/// Where values lie on the picture.
struct Frame {
    /// Logarithms of the smallest and the largest capacity.
    from: f64,
    to: f64,
    /// The highest rate on the axis.
    top: f64,
}

impl Frame {
    fn of(rows: &[Row]) -> Frame {
        let logs = || rows.iter().map(|row| f64::from(row.capacity_blocks).ln());
        let highest = rows.iter().map(|row| row.block_hit_rate).fold(0.0, f64::max);
        Frame {
            from: logs().fold(f64::INFINITY, f64::min),
            to: logs().fold(f64::NEG_INFINITY, f64::max),
            top: ((highest * 10.0).ceil() / 10.0).clamp(0.1, 1.0),
        }
    }

    fn x(&self, capacity_blocks: u32) -> f64 {
        let span = self.to - self.from;
        let share = if span > 0.0 { (f64::from(capacity_blocks).ln() - self.from) / span } else { 0.5 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, rate: f64) -> f64 {
        HEIGHT - BOTTOM - rate / self.top * (HEIGHT - TOP - BOTTOM)
    }
}

/// Draws rows that come strategy by strategy, each at all `sizes`, as a whole SVG file.
pub(super) fn draw(trace: &str, sizes: &[Size], rows: &[Row]) -> String {
    let frame = Frame::of(rows);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" font-family=\"system-ui, sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <title>Hit rate against size: {name}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"28\" font-size=\"17\" font-weight=\"600\">{name}</text>\n",
        name = escape(trace)
    );
    axes(&mut svg, &frame, sizes, rows);
    let mut lines: Vec<Line<'_>> = rows
        .chunks(sizes.len())
        .map(|rows| Line {
            rows,
            mean: rows.iter().map(|row| row.block_hit_rate).sum::<f64>() / rows.len() as f64,
        })
        .collect();
    lines.sort_by(|one, other| other.mean.total_cmp(&one.mean));
    for (place, line) in lines.iter().enumerate() {
        draw_line(&mut svg, &frame, place, line, rows, sizes.len());
    }
    if let Some(note) = beyond_the_optimum(rows) {
        let y = HEIGHT - 2.0;
        put(
            &mut svg,
            format_args!("<text x=\"{LEFT}\" y=\"{y}\" font-size=\"11\" fill=\"#666\">{note}</text>"),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn axes(svg: &mut String, frame: &Frame, sizes: &[Size], rows: &[Row]) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let step = if frame.top > 0.5 { 0.1 } else { 0.05 };
    for tick in 0..=(frame.top / step).round() as u32 {
        let rate = f64::from(tick) * step;
        let y = frame.y(rate);
        put(svg, format_args!("<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#e3e3e3\"/>"));
        let x = LEFT - 8.0;
        let y = y + 4.5;
        put(
            svg,
            format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{:.0} %</text>", 100.0 * rate),
        );
    }
    let mut ticks: Vec<(f64, &Size)> =
        rows.iter().zip(sizes).map(|(row, size)| (frame.x(row.capacity_blocks), size)).collect();
    ticks.sort_by(|one, other| one.0.total_cmp(&other.0));
    let mut last_label = f64::NEG_INFINITY;
    for (x, size) in ticks {
        put(svg, format_args!("<path d=\"M{x:.1} {TOP}V{bottom}\" stroke=\"#f0f0f0\"/>"));
        if x - last_label >= LABEL_GAP {
            last_label = x;
            let y = bottom + 20.0;
            put(svg, format_args!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{size}</text>"));
        }
    }
    put(svg, format_args!("<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>"));
    let (x, y) = ((LEFT + right) / 2.0, HEIGHT - 16.0);
    let unit = if sizes.iter().all(|size| matches!(size, Size::Blocks(_))) {
        "blocks that fit (logarithmic)"
    } else {
        "size of the cache, % of the trace's different blocks (logarithmic)"
    };
    put(svg, format_args!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{unit}</text>"));
    let (x, y) = (LEFT, TOP - 10.0);
    put(
        svg,
        format_args!("<text x=\"{x}\" y=\"{y}\" fill=\"#666\">blocks hit with their whole prefix</text>"),
    );
}

fn draw_line(svg: &mut String, frame: &Frame, place: usize, line: &Line<'_>, all: &[Row], sizes: usize) {
    let strategy = line.rows[0].strategy;
    // A strategy keeps its colour whatever place it comes to.
    let number = all.chunks(sizes).position(|rows| rows[0].strategy == strategy).unwrap_or(place);
    let (colour, dash, width) = match strategy {
        Contender::Optimum => ("#111", "7 4", 2.0),
        Contender::Strategy(_) if number >= COLOURS.len() => (COLOURS[number % COLOURS.len()], "2 3", 2.0),
        Contender::Strategy(_) => (COLOURS[number], "none", 2.0),
    };
    let mut points: Vec<(f64, f64, &Row)> = line
        .rows
        .iter()
        .map(|row| (frame.x(row.capacity_blocks), frame.y(row.block_hit_rate), row))
        .collect();
    points.sort_by(|one, other| one.0.total_cmp(&other.0));
    let path: Vec<String> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
    let name = escape(&strategy.to_string());
    put(
        svg,
        format_args!(
            "<g class=\"{name}\"><polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{width}\" stroke-dasharray=\"{dash}\"/>",
            path.join(" ")
        ),
    );
    for (x, y, row) in &points {
        let (blocks, rate) = (row.capacity_blocks, 100.0 * row.block_hit_rate);
        put(
            svg,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\">\
                 <title>{name}, {blocks} blocks: {rate:.2} %</title></circle>"
            ),
        );
    }
    let (x, y) = (WIDTH - RIGHT + 20.0, TOP + 8.0 + 24.0 * place as f64);
    let (end, text, baseline) = (x + 26.0, x + 34.0, y + 4.5);
    put(
        svg,
        format_args!(
            "<path d=\"M{x} {y}H{end}\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-dasharray=\"{dash}\"/>\
             <text x=\"{text}\" y=\"{baseline}\">{name} <tspan fill=\"#777\">{:.1} %</tspan></text></g>",
            100.0 * line.mean
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_cache::policy::Strategy;

    fn row(strategy: Contender, capacity_blocks: u32, block_hit_rate: f64) -> Row {
        Row {
            strategy,
            capacity_blocks,
            requests: 1,
            blocks: 100,
            hits: (100.0 * block_hit_rate) as u64,
            block_hit_rate,
            tokens_saved_ratio: 0.0,
            seconds: 0.0,
        }
    }

    #[test]
    fn every_strategy_has_a_line_and_the_axis_is_logarithmic() {
        let lru = Contender::Strategy(Strategy::Lru);
        let mut rows: Vec<Row> =
            [(10, 0.1), (100, 0.2), (1000, 0.4)].map(|(size, rate)| row(lru, size, rate)).into();
        rows.extend([10, 100, 1000].map(|size| row(Contender::Optimum, size, 0.5)));
        let svg = draw("chats & <agents>", &[10, 100, 1000].map(Size::Blocks), &rows);
        assert!(svg.contains("chats &amp; &lt;agents&gt;") && svg.ends_with("</svg>\n"));
        // Equal factors are equal distances; the optimum lies on the top of an axis that ends at 50 %.
        assert!(svg.contains("<polyline points=\"64.0,407.2 407.0,318.4 750.0,140.8\""), "{svg}");
        assert!(svg.contains("<polyline points=\"64.0,52.0 407.0,52.0 750.0,52.0\""), "{svg}");
        assert_eq!((svg.matches("<circle").count(), svg.matches("<g ").count()), (6, 2));
        assert_eq!((svg.matches("<g ").count(), svg.matches("</g>").count()), (2, 2));
    }

    #[test]
    fn one_size_is_a_picture_too() {
        let svg = draw("x", &[Size::Percent(5.0)], &[row(Contender::Optimum, 9, 0.3)]);
        assert!(svg.contains("<circle cx=\"407.0\"") && svg.contains(">5%</text>"), "{svg}");
    }
}
