"""The CUDA kernels of `csrc/cuda` over tensors.

`library` opens the shared library and turns its codes into errors; `structs` are its C structures; `tensors` says what
a tensor must be before its address is handed on; the other files are one kind of operation each. Every function takes
the library first, launches on the current stream and does not wait. With a library compiled for the emulator
(`csrc/cuda/emulator`) the same functions compute on tensors of the CPU: that is how they are tested without a GPU.
"""
