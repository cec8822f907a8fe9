// DCNv3: each output channel sums P bilinear samples of its group, at displaced points, times the points' masks.
//
// Forward: tasks are rows of outputs; a vector is channels of one group, so the 4 corners of a point are 4 broadcasts
// and fused multiply-adds. Backward: tasks are (image, group), because groups share no channel: grad_input needs no
// atomics and its sums have one order.
//
// Measured (one core of a Zen 4 EPYC, AVX-512; 120x160, 4 groups of 16 channels, 9 points): 7.4 ms, where the
// multiply-adds alone, one vector a cycle, would take 0.9: the rest is the points' scalar arithmetic. Backward 30 ms.
#pragma once

#include "functions.h"
#include "kernels.h"
#include "vector.h"

namespace {

constexpr int64_t kMostPoints = 64;

// A bilinear sample: corner weights (zero outside), where the corners are (clamped inside), distances to the first.
struct Sample {
    bool inside;
    float right, down;          // distances from the upper left corner
    bool has[4];                // corners inside the input: upper left, upper right, lower left, lower right
    int64_t at[4];              // their elements in the image
};

struct Dcnv3Points {
    int64_t count;
    float column[kMostPoints], row[kMostPoints];  // of the undisplaced points, from the kernel's first one, width first

    explicit Dcnv3Points(const Dcnv3Shape& s) : count(0) {
        const int64_t middle = s.kernel * s.kernel / 2;
        for (int64_t point = 0; point < s.kernel * s.kernel; ++point) {
            if (s.remove_center && point == middle) continue;
            column[count] = static_cast<float>(point / s.kernel * s.dilation);
            row[count] = static_cast<float>(point % s.kernel * s.dilation);
            ++count;
        }
    }
};

SA2_INLINE float first_coordinate(const Dcnv3Shape& s) {
    // The kernel's grid is scaled about its middle together with the offsets.
    const auto reach = static_cast<float>(s.dilation * (s.kernel - 1) / 2);
    return reach - static_cast<float>(s.padding) - reach * s.offset_scale;
}

SA2_INLINE Sample sample_at(const Dcnv3Shape& s, float x, float y) {
    Sample sample;
    // Written so that NaN is outside. A point at -1 reads zero, but has a slope.
    sample.inside = x >= -1.0f && y >= -1.0f && x < static_cast<float>(s.width) && y < static_cast<float>(s.height);
    if (!sample.inside) return sample;
    // The floor of numbers from -1 on. Truncating x + 1 would not do: that sum rounds, and just below the
    // width it rounds up to a column that does not exist.
    const int64_t left = static_cast<int64_t>(static_cast<int32_t>(x)) - (x < 0.0f && x > -1.0f);
    const int64_t top = static_cast<int64_t>(static_cast<int32_t>(y)) - (y < 0.0f && y > -1.0f);
    sample.right = x - static_cast<float>(left);
    sample.down = y - static_cast<float>(top);
    const int64_t channels = s.groups * s.group_channels;
    const int64_t corner = (top * s.width + left) * channels;
    sample.at[0] = corner;
    sample.at[1] = corner + channels;
    sample.at[2] = corner + s.width * channels;
    sample.at[3] = sample.at[2] + channels;
    const bool first_column = left >= 0, last_column = left + 1 < s.width;
    const bool first_row = top >= 0, last_row = top + 1 < s.height;
    sample.has[0] = first_row && first_column;
    sample.has[1] = first_row && last_column;
    sample.has[2] = last_row && first_column;
    sample.has[3] = last_row && last_column;
    return sample;
}

SA2_INLINE void corner_weights(const Sample& sample, float weights[4]) {
    const float left = 1.0f - sample.right, up = 1.0f - sample.down;
    weights[0] = up * left;
    weights[1] = up * sample.right;
    weights[2] = sample.down * left;
    weights[3] = sample.down * sample.right;
}

// One output pixel and group, `kParts` vectors of channels at a time (the last may be partial).
template <int kParts>
SA2_INLINE void dcnv3_sum(const Sample* samples, const float* mask, int64_t points, const float* image, float* out,
                          int64_t channels) {
    Vec total[kParts] = {};
    for (int64_t point = 0; point < points; ++point) {
        const Sample& sample = samples[point];
        if (!sample.inside) continue;
        float weights[4];
        corner_weights(sample, weights);
        for (int corner = 0; corner < 4; ++corner) {
            if (!sample.has[corner]) continue;
            const Vec weight = broadcast(weights[corner] * mask[point]);
            const float* from = image + sample.at[corner];
            for (int part = 0; part < kParts; ++part)
                total[part] += weight * load(from + part * kLanes, channels - part * kLanes);
        }
    }
    for (int part = 0; part < kParts; ++part) store(out + part * kLanes, total[part], channels - part * kLanes);
}

struct Dcnv3Call {
    const Dcnv3Shape& shape;
    Dcnv3Points points;
    const float *input, *rows;  // of points: offsets of all groups, then their masks
    float* output;
    const float* grad;
    float *grad_input, *grad_rows;
};

// The masks of one pixel and group: as they are, or the softmax of them.
SA2_INLINE void dcnv3_masks(const Dcnv3Shape& s, const float* from, int64_t points, float* masks) {
    if (!s.softmax) {
        for (int64_t point = 0; point < points; ++point) masks[point] = from[point];
        return;
    }
    float largest = from[0];
    for (int64_t point = 1; point < points; ++point) largest = from[point] > largest ? from[point] : largest;
    float total = 0.0f;
    for (int64_t done = 0; done < points; done += kLanes) {
        const Vec shifted = load(from + done, points - done) - largest;
        // NaN must stay NaN, which the exponential does not promise
        store(masks + done, shifted == shifted ? exp_nonpositive(shifted) : shifted, points - done);
    }
    for (int64_t point = 0; point < points; ++point) total += masks[point];
    for (int64_t point = 0; point < points; ++point) masks[point] /= total;
}

SA2_INLINE void dcnv3_samples(const Dcnv3Shape& s, const Dcnv3Points& points, const float* offset, float base_x,
                              float base_y, Sample* samples) {
    for (int64_t point = 0; point < points.count; ++point) {
        const float x = (offset[2 * point] + points.column[point]) * s.offset_scale + base_x;
        const float y = (offset[2 * point + 1] + points.row[point]) * s.offset_scale + base_y;
        samples[point] = sample_at(s, x, y);
    }
}

void dcnv3_forward_row(void* context, int64_t index, int) {
    const auto& call = *static_cast<const Dcnv3Call*>(context);
    const Dcnv3Shape& s = call.shape;
    const int64_t points = call.points.count, group_channels = s.group_channels;
    const int64_t image = index / s.out_height, row = index % s.out_height;
    const float* input = call.input + image * s.height * s.width * s.groups * group_channels;
    const float start = first_coordinate(s);
    const float base_y = start + static_cast<float>(row * s.stride);
    Sample samples[kMostPoints];
    float mask[kMostPoints];
    for (int64_t column = 0; column < s.out_width; ++column) {
        const float base_x = start + static_cast<float>(column * s.stride);
        const int64_t pixel = (index * s.out_width + column) * s.groups;
        const float* row_of_points = call.rows + (index * s.out_width + column) * s.row;
        for (int64_t group = 0; group < s.groups; ++group) {
            dcnv3_samples(s, call.points, row_of_points + group * points * 2, base_x, base_y, samples);
            dcnv3_masks(s, row_of_points + (2 * s.groups + group) * points, points, mask);
            const float* from = input + group * group_channels;
            float* out = call.output + (pixel + group) * group_channels;
            if (group_channels == 16) {
                // the width of a group in every released model
                dcnv3_sum<16 / kLanes>(samples, mask, points, from, out, 16);
            } else {
                for (int64_t done = 0; done < group_channels; done += kLanes)
                    dcnv3_sum<1>(samples, mask, points, from + done, out + done, group_channels - done);
            }
        }
    }
}

int dcnv3_forward(const Dcnv3Shape& shape, const float* input, const float* points, float* output, int threads) {
    Dcnv3Call call{shape, Dcnv3Points(shape), input, points, output, nullptr, nullptr, nullptr};
    sa2::run_parallel(dcnv3_forward_row, &call, shape.batch * shape.out_height, threads);
    return sa2::kDone;
}

// Gradients of one output pixel and group.
SA2_INLINE void dcnv3_pixel_backward(const Dcnv3Call& call, const Sample* samples, const float* image,
                                     float* grad_image, const float* grad, const float* mask, float* grad_offset,
                                     float* grad_mask, int64_t channels) {
    for (int64_t point = 0; point < call.points.count; ++point) {
        const Sample& sample = samples[point];
        float of_mask = 0.0f, of_x = 0.0f, of_y = 0.0f;
        if (sample.inside) {
            float weights[4];
            corner_weights(sample, weights);
            const float right = sample.right, down = sample.down;
            // derivatives of the corner weights by x and by y
            const float by_x[4] = {down - 1.0f, 1.0f - down, -down, down};
            const float by_y[4] = {right - 1.0f, -right, 1.0f - right, right};
            Vec sum_mask{}, sum_x{}, sum_y{};
            for (int64_t done = 0; done < channels; done += kLanes) {
                const int64_t left = channels - done;
                const Vec g = load(grad + done, left);
                const Vec scattered = g * mask[point];
                Vec value{}, slope_x{}, slope_y{};
                for (int corner = 0; corner < 4; ++corner) {
                    if (!sample.has[corner]) continue;
                    const Vec v = load(image + sample.at[corner] + done, left);
                    value += v * weights[corner];
                    slope_x += v * by_x[corner];
                    slope_y += v * by_y[corner];
                    float* to = grad_image + sample.at[corner] + done;
                    store(to, load(to, left) + scattered * weights[corner], left);
                }
                sum_mask += g * value;
                sum_x += g * slope_x;
                sum_y += g * slope_y;
            }
            const float factor = mask[point] * call.shape.offset_scale;
            of_mask = sum(sum_mask);
            of_x = sum(sum_x) * factor;
            of_y = sum(sum_y) * factor;
        }
        grad_mask[point] = of_mask;
        grad_offset[2 * point] = of_x;
        grad_offset[2 * point + 1] = of_y;
    }
    if (!call.shape.softmax) return;
    float mean = 0.0f;
    for (int64_t point = 0; point < call.points.count; ++point) mean += mask[point] * grad_mask[point];
    for (int64_t point = 0; point < call.points.count; ++point)
        grad_mask[point] = mask[point] * (grad_mask[point] - mean);
}

void dcnv3_backward_group(void* context, int64_t index, int) {
    const auto& call = *static_cast<const Dcnv3Call*>(context);
    const Dcnv3Shape& s = call.shape;
    const int64_t points = call.points.count, group_channels = s.group_channels;
    const int64_t image = index / s.groups, group = index % s.groups;
    const int64_t first = image * s.height * s.width * s.groups * group_channels + group * group_channels;
    const float start = first_coordinate(s);
    Sample samples[kMostPoints];
    float mask[kMostPoints];
    for (int64_t row = 0; row < s.out_height; ++row) {
        for (int64_t column = 0; column < s.out_width; ++column) {
            const int64_t pixel = (image * s.out_height + row) * s.out_width + column;
            const int64_t offset = pixel * s.row + group * points * 2;
            const int64_t logits = pixel * s.row + (2 * s.groups + group) * points;
            const float base_x = start + static_cast<float>(column * s.stride);
            const float base_y = start + static_cast<float>(row * s.stride);
            dcnv3_samples(s, call.points, call.rows + offset, base_x, base_y, samples);
            dcnv3_masks(s, call.rows + logits, points, mask);
            dcnv3_pixel_backward(call, samples, call.input + first, call.grad_input + first,
                                 call.grad + (pixel * s.groups + group) * group_channels, mask,
                                 call.grad_rows + offset, call.grad_rows + logits,
                                 group_channels == 16 ? 16 : group_channels);
            if (group == 0)
                for (int64_t i = 3 * s.groups * points; i < s.row; ++i) call.grad_rows[pixel * s.row + i] = 0.0f;
        }
    }
}

// grad_input arrives filled with zeros.
int dcnv3_backward(const Dcnv3Shape& shape, const float* input, const float* points, const float* grad,
                   float* grad_input, float* grad_points, int threads) {
    Dcnv3Call call{shape, Dcnv3Points(shape), input, points, nullptr, grad, grad_input, grad_points};
    sa2::run_parallel(dcnv3_backward_group, &call, shape.batch * shape.groups, threads);
    return sa2::kDone;
}

}  // namespace
