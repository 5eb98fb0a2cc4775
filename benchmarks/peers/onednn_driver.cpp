// oneDNN's lbr_gru behind four C functions: float32, time-major, inference. Weights arrive in its plain layout and may be
// reordered once into the one it likes best. The state goes to and fro between two buffers. A trainer is a forward pass
// that keeps its workspace and a backward pass from one gradient, both called at once.
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

struct trainer {
    engine cpu{engine::kind::cpu, 0};
    stream queue{cpu};
    primitive forward, backward;
    std::unordered_map<int, memory> there, back;
    memory plain_diff_u;
};

// One layer; arguments as for gru_new, and dy (T, N, H).
trainer *trainer_new(long N, long T, long I, long H, const float *weight_ih, const float *weight_hh, const float *bias,
                     const float *dy, int prepacked)
try {
    auto g = std::make_unique<trainer>();
    const auto f32 = memory::data_type::f32;
    const auto layout = prepacked ? tag::any : tag::ldigo;
    memory::desc x({T, N, I}, f32, tag::tnc), y({T, N, H}, f32, tag::tnc), h({1, 1, N, H}, f32, tag::ldnc);
    memory::desc w({1, 1, I, 3, H}, f32, tag::ldigo), u({1, 1, H, 3, H}, f32, tag::ldigo), b({1, 1, 4, H}, f32, tag::ldgo);
    memory::desc w_own({1, 1, I, 3, H}, f32, layout), u_own({1, 1, H, 3, H}, f32, layout);
    const auto forwards = rnn_direction::unidirectional_left2right;
#if DNNL_VERSION_MAJOR >= 3
    lbr_gru_forward::primitive_desc there(g->cpu, prop_kind::forward_training, forwards, x, h, w_own, u_own, b, y, h);
    lbr_gru_backward::primitive_desc back(g->cpu, prop_kind::backward, forwards, x, h, w_own, u_own, b, y, h, x, h, w_own,
                                          u_own, b, y, h, there);
#else
    lbr_gru_forward::primitive_desc there({prop_kind::forward_training, forwards, x, h, w_own, u_own, b, y, h}, g->cpu);
    lbr_gru_backward::primitive_desc back({prop_kind::backward, forwards, x, h, w_own, u_own, b, y, h, x, h, w_own, u_own,
                                           b, y, h}, g->cpu, there);
#endif
    g->forward = lbr_gru_forward(there);
    g->backward = lbr_gru_backward(back);
    memory given_w = filled(g->cpu, w, weight_ih), given_u = filled(g->cpu, u, weight_hh);
    memory ws[4] = {memory(there.weights_layer_desc(), g->cpu), memory(there.weights_iter_desc(), g->cpu),
                    memory(back.weights_layer_desc(), g->cpu), memory(back.weights_iter_desc(), g->cpu)};
    for (int i = 0; i < 4; i++) {
        memory &from = i % 2 ? given_u : given_w;
        reorder(from, ws[i]).execute(g->queue, from, ws[i]);
    }
    g->queue.wait();
    memory in = filled(g->cpu, x, nullptr), out = filled(g->cpu, y, nullptr), bias_memory = filled(g->cpu, b, bias);
    memory h0 = filled(g->cpu, h, nullptr), h_n = filled(g->cpu, h, nullptr), workspace(there.workspace_desc(), g->cpu);
    g->there = {{DNNL_ARG_SRC_LAYER, in}, {DNNL_ARG_SRC_ITER, h0}, {DNNL_ARG_WEIGHTS_LAYER, ws[0]},
                {DNNL_ARG_WEIGHTS_ITER, ws[1]}, {DNNL_ARG_BIAS, bias_memory}, {DNNL_ARG_DST_LAYER, out},
                {DNNL_ARG_DST_ITER, h_n}, {DNNL_ARG_WORKSPACE, workspace}};
    g->back = g->there;
    g->back[DNNL_ARG_WEIGHTS_LAYER] = ws[2];
    g->back[DNNL_ARG_WEIGHTS_ITER] = ws[3];
    g->back.insert({{DNNL_ARG_DIFF_DST_LAYER, filled(g->cpu, y, dy)},
                    {DNNL_ARG_DIFF_DST_ITER, filled(g->cpu, h, nullptr)},
                    {DNNL_ARG_DIFF_SRC_LAYER, filled(g->cpu, x, nullptr)},
                    {DNNL_ARG_DIFF_SRC_ITER, filled(g->cpu, h, nullptr)},
                    {DNNL_ARG_DIFF_WEIGHTS_LAYER, memory(back.diff_weights_layer_desc(), g->cpu)},
                    {DNNL_ARG_DIFF_WEIGHTS_ITER, memory(back.diff_weights_iter_desc(), g->cpu)},
                    {DNNL_ARG_DIFF_BIAS, filled(g->cpu, b, nullptr)}});
    g->plain_diff_u = filled(g->cpu, u, nullptr);
    return g.release();
} catch (const std::exception &) {
    return nullptr;
}

void trainer_call(trainer *g)
{
    g->forward.execute(g->queue, g->there);
    for (int name : {DNNL_ARG_DIFF_WEIGHTS_LAYER, DNNL_ARG_DIFF_WEIGHTS_ITER, DNNL_ARG_DIFF_BIAS}) { // it adds to them
        memory &m = g->back.at(name);
        std::memset(m.get_data_handle(), 0, m.get_desc().get_size());
    }
    g->backward.execute(g->queue, g->back);
    g->queue.wait();
}

// 0 x (T, N, I) · 1 dx (T, N, I) · 2 the gradient of weight_hh (H, 3, H), gates z r n
float *trainer_buffer(trainer *g, int which)
{
    if (which == 2) {
        reorder(g->back.at(DNNL_ARG_DIFF_WEIGHTS_ITER), g->plain_diff_u)
            .execute(g->queue, g->back.at(DNNL_ARG_DIFF_WEIGHTS_ITER), g->plain_diff_u);
        g->queue.wait();
        return static_cast<float *>(g->plain_diff_u.get_data_handle());
    }
    return static_cast<float *>(g->back.at(which ? DNNL_ARG_DIFF_SRC_LAYER : DNNL_ARG_SRC_LAYER).get_data_handle());
}

void trainer_delete(trainer *g) { delete g; }
}
