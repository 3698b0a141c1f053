use crate::cpu::for_row_blocks;

pub fn add(x: &[f32], z: &[f32], y: &mut [f32]) {
    for_row_blocks(y, 1, |at, y| {
        for ((y, x), z) in y.iter_mut().zip(&x[at..]).zip(&z[at..]) {
            *y = x + z;
        }
    });
}

pub fn accumulate(acc: &mut [f32], x: &[f32]) {
    for_row_blocks(acc, 1, |at, acc| {
        for (acc, x) in acc.iter_mut().zip(&x[at..]) {
            *acc += x;
        }
    });
}
