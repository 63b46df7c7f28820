# proto/wire/**.proto → wire/**_pb2.py, _pb2_grpc.py, _pb2.pyi
set(SPLICE_STUBS ${CMAKE_BINARY_DIR}/stubs)
file(MAKE_DIRECTORY ${SPLICE_STUBS})
file(GLOB SPLICE_PROTOS CONFIGURE_DEPENDS RELATIVE ${CMAKE_SOURCE_DIR}/proto
     ${CMAKE_SOURCE_DIR}/proto/wire/*/*.proto)
list(TRANSFORM SPLICE_PROTOS PREPEND ${CMAKE_SOURCE_DIR}/proto/ OUTPUT_VARIABLE SPLICE_PROTO_FILES)
# protoc finds its mypy plugin on PATH; in a virtual environment that nobody activated it lies beside the interpreter.
cmake_path(GET Python_EXECUTABLE PARENT_PATH SPLICE_PYTHON_BIN)
add_custom_command(
  OUTPUT ${CMAKE_BINARY_DIR}/stubs.stamp
  COMMAND ${CMAKE_COMMAND} -E env --modify PATH=path_list_prepend:${SPLICE_PYTHON_BIN}
          ${Python_EXECUTABLE} -m grpc_tools.protoc -I${CMAKE_SOURCE_DIR}/proto
          --python_out=${SPLICE_STUBS} --grpc_python_out=${SPLICE_STUBS}
          --mypy_out=quiet:${SPLICE_STUBS} ${SPLICE_PROTOS}
  COMMAND ${CMAKE_COMMAND} -E touch ${CMAKE_BINARY_DIR}/stubs.stamp
  DEPENDS ${SPLICE_PROTO_FILES}
  WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}/proto
  COMMENT "gRPC stubs" VERBATIM)
add_custom_target(stubs ALL DEPENDS ${CMAKE_BINARY_DIR}/stubs.stamp)
install(DIRECTORY ${SPLICE_STUBS}/wire/ DESTINATION wire)
