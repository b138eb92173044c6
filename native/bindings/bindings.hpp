// The parts of the Python module wagma._native, each registered in a file of its own.
#pragma once

#include <pybind11/pybind11.h>

void register_device(pybind11::module_& module);  // bind_device.cpp: devices, models and buffers there
void register_engine(pybind11::module_& module);  // bind_engine.cpp: engine, records, errors
void register_emulated(pybind11::module_& module);  // bind_emulated.cpp: an application's stream on an emulated device
void register_protocol(pybind11::module_& module);  // bind_protocol.cpp: decision machine, groups, trees
void register_reduce(pybind11::module_& module);  // bind_reduce.cpp: sums, means, merges
void register_transport(pybind11::module_& module);  // bind_transport.cpp: threads of a process, processes of a machine

// The parts of wagma._proof.
void register_explore(pybind11::module_& module);  // bind_explore.cpp: every state of a small case
void register_fuzz(pybind11::module_& module);     // bind_fuzz.cpp: random runs of larger ones
