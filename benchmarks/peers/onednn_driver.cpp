// oneDNN's lbr_gru behind four C functions: float32, time-major, inference. Weights arrive in its plain layout and may be
// reordered once into the one it likes best. The state goes to and fro between two buffers.
#include <cstring>
#include <exception>
#include <memory>
#include <unordered_map>

#include <oneapi/dnnl/dnnl.hpp>

using namespace dnnl;
using tag = memory::format_tag;

struct gru {
    engine cpu{engine::kind::cpu, 0};
    stream queue{cpu};
    lbr_gru_forward primitive;
    std::unordered_map<int, memory> arguments[2];
    int turn = 0;
};

static memory filled(const engine &cpu, const memory::desc &desc, const float *values)
{
    memory m(desc, cpu);
    if (values)
        std::memcpy(m.get_data_handle(), values, desc.get_size());
    else
        std::memset(m.get_data_handle(), 0, desc.get_size());
    return m;
}

extern "C" {

extern const int onednn_version[3];
const int onednn_version[3] = {DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH};

// weight_ih (L, I, 3, H), weight_hh (L, H, 3, H), gates z r n; bias (L, 4, H): z r n and n's recurrent one. NULL: refused.
gru *gru_new(long L, long N, long T, long I, long H, const float *weight_ih, const float *weight_hh, const float *bias,
             int prepacked)
try {
    auto g = std::make_unique<gru>();
    const auto f32 = memory::data_type::f32;
    const auto layout = prepacked ? tag::any : tag::ldigo;
    memory::desc x({T, N, I}, f32, tag::tnc), y({T, N, H}, f32, tag::tnc), h({L, 1, N, H}, f32, tag::ldnc);
    memory::desc w({L, 1, I, 3, H}, f32, tag::ldigo), u({L, 1, H, 3, H}, f32, tag::ldigo), b({L, 1, 4, H}, f32, tag::ldgo);
    memory::desc w_own({L, 1, I, 3, H}, f32, layout), u_own({L, 1, H, 3, H}, f32, layout);
    const auto inference = prop_kind::forward_inference;
    const auto forwards = rnn_direction::unidirectional_left2right;
#if DNNL_VERSION_MAJOR >= 3
    lbr_gru_forward::primitive_desc made(g->cpu, inference, forwards, x, h, w_own, u_own, b, y, h);
#else
    lbr_gru_forward::primitive_desc made({inference, forwards, x, h, w_own, u_own, b, y, h}, g->cpu);
#endif
    g->primitive = lbr_gru_forward(made);
    memory given_w = filled(g->cpu, w, weight_ih), given_u = filled(g->cpu, u, weight_hh);
    memory own_w(made.weights_layer_desc(), g->cpu), own_u(made.weights_iter_desc(), g->cpu);
    reorder(given_w, own_w).execute(g->queue, given_w, own_w);
    reorder(given_u, own_u).execute(g->queue, given_u, own_u);
    g->queue.wait();
    memory states[2] = {filled(g->cpu, h, nullptr), filled(g->cpu, h, nullptr)};
    for (int i = 0; i < 2; i++)
        g->arguments[i] = {{DNNL_ARG_WEIGHTS_LAYER, own_w}, {DNNL_ARG_WEIGHTS_ITER, own_u}, {DNNL_ARG_SRC_ITER, states[i]},
                           {DNNL_ARG_DST_ITER, states[1 - i]}};
    memory in = filled(g->cpu, x, nullptr), out = filled(g->cpu, y, nullptr), bias_memory = filled(g->cpu, b, bias);
    for (auto &arguments : g->arguments) {
        arguments.insert({DNNL_ARG_SRC_LAYER, in});
        arguments.insert({DNNL_ARG_DST_LAYER, out});
        arguments.insert({DNNL_ARG_BIAS, bias_memory});
    }
    return g.release();
} catch (const std::exception &) {
    return nullptr;
}

// 0 x (T, N, I) · 1 y (T, N, H) · 2 the state (L, N, H) that the next call reads; valid as long as g
float *gru_buffer(gru *g, int which)
{
    static const int names[] = {DNNL_ARG_SRC_LAYER, DNNL_ARG_DST_LAYER, DNNL_ARG_SRC_ITER};
    return static_cast<float *>(g->arguments[g->turn].at(names[which]).get_data_handle());
}

void gru_call(gru *g, int carry)
{
    g->primitive.execute(g->queue, g->arguments[g->turn]);
    g->queue.wait();
    g->turn ^= carry;
}

void gru_delete(gru *g) { delete g; }
}
