//! Exact nearest neighbours: the product of a vector with every row of a table.

use crate::ops::vectorised;

/// Partial sums of a product.
const LANES: usize = 16;

vectorised! {
    fn products(query: &[f32], rows: &[f32], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            let mut sums = [0.0f32; LANES];
            let (mut x, mut y) = (query.chunks_exact(LANES), row.chunks_exact(LANES));
            for (x, y) in (&mut x).zip(&mut y) {
                for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
                    *sum = x.mul_add(*y, *sum);
                }
            }
            for (sum, (x, y)) in sums.iter_mut().zip(x.remainder().iter().zip(y.remainder())) {
                *sum = x.mul_add(*y, *sum);
            }
            *out = sums.iter().sum();
        }
    }
}

/// `out[i] = query · rows[i]` for rows `[N, D]` and a query of D floats.
///
/// # Panics
/// Where the lengths do not fit.
pub fn dots(query: &[f32], rows: &[f32], out: &mut [f32]) {
    assert!(!query.is_empty() && rows.len() == query.len() * out.len(), "rows of the query's length");
    products(query, rows, out);
}

#[cfg(test)]
mod tests {
    #[test]
    fn products_are_those_of_the_formula() {
        for dim in [1, 15, 16, 17, 384] {
            let value = |i: usize| ((i * 7919) % 101) as f32 / 50.0 - 1.0;
            let query: Vec<f32> = (0..dim).map(value).collect();
            let rows: Vec<f32> = (0..3 * dim).map(|i| value(i + 13)).collect();
            let mut out = [f32::NAN; 3];
            super::dots(&query, &rows, &mut out);
            for (row, out) in rows.chunks(dim).zip(out) {
                let exact: f64 = row.iter().zip(&query).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                assert!((f64::from(out) - exact).abs() < 1e-4, "{dim}: {out} and not {exact}");
            }
        }
    }
}
