# Fails if one of OBJECTS, kernels of one instruction set each, holds a weak function (see shared.h). Run with `cmake -P`.
foreach(object ${OBJECTS})
  execute_process(COMMAND ${NM} -C ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCH "[0-9a-f]+ [Wu] [^\n]+" found "${symbols}")
  if(found)
    message(FATAL_ERROR "${object} shares a function with other instruction sets: ${found}. Mark it SPLICE_SHARED or SPLICE_INLINE.")
  endif()
endforeach()
