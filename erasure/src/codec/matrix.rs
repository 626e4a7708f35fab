//! Small matrices over GF(2^8), as vectors of rows.

use reed_solomon_erasure::galois_8::{div, mul};

/// One row.
pub(super) type Row = Vec<u8>;

/// Row `index` of the identity.
pub(super) fn unit(width: usize, index: usize) -> Row {
    (0..width).map(|column| u8::from(column == index)).collect()
}

/// `row` times `matrix`.
pub(super) fn multiply_row(row: &Row, matrix: &[Row]) -> Row {
    let width = matrix.first().map_or(0, Vec::len);
    let mut product = vec![0; width];
    for (factor, other) in row.iter().zip(matrix) {
        add_multiple(&mut product, *factor, other);
    }
    product
}

/// The inverse of a square matrix by Gauss and Jordan; `None` if it has none.
pub(super) fn invert(mut matrix: Vec<Row>) -> Option<Vec<Row>> {
    let size = matrix.len();
    let mut inverse: Vec<Row> = (0..size).map(|index| unit(size, index)).collect();
    for pivot in 0..size {
        let found = (pivot..size).find(|row| matrix[*row][pivot] != 0)?;
        matrix.swap(pivot, found);
        inverse.swap(pivot, found);
        let scale = div(1, matrix[pivot][pivot]);
        for value in matrix[pivot].iter_mut().chain(&mut inverse[pivot]) {
            *value = mul(*value, scale);
        }
        let (pivot_row, pivot_inverse) = (matrix[pivot].clone(), inverse[pivot].clone());
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = matrix[row][pivot];
            // In this field adding is subtracting.
            add_multiple(&mut matrix[row], factor, &pivot_row);
            add_multiple(&mut inverse[row], factor, &pivot_inverse);
        }
    }
    Some(inverse)
}

fn add_multiple(to: &mut Row, factor: u8, from: &Row) {
    if factor != 0 {
        for (to, from) in to.iter_mut().zip(from) {
            *to ^= mul(factor, *from);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_singular_matrix_has_no_inverse() {
        assert_eq!(invert(vec![vec![1, 2], vec![1, 2]]), None);
        assert_eq!(invert(vec![vec![0]]), None);
    }

    proptest! {
        #[test]
        fn a_matrix_times_its_inverse_is_the_identity(
            matrix in (1..12_usize).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(any::<u8>(), n), n)),
        ) {
            if let Some(inverse) = invert(matrix.clone()) {
                for (index, row) in matrix.iter().enumerate() {
                    prop_assert_eq!(multiply_row(row, &inverse), unit(matrix.len(), index));
                }
            }
        }
    }
}
