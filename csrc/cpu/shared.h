// Functions of headers that several instruction sets share are inlined without exception. Of an inline function that several units
// hold a linker keeps one copy for all of them, and that might be one with instructions that the machine lacks.
#pragma once

#define SPLICE_SHARED [[gnu::always_inline]] inline
