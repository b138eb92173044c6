# nvcc, and what it makes of native/device, for the module _native_cuda. tools/cuda_build.py does all of it; this asks, tells and links.
# Defines wagma_add_cuda(<target>). Needs Python_EXECUTABLE.

set(WAGMA_CUDA AUTO CACHE STRING "GPUs: AUTO builds with CUDA if that works, ON fails where it does not, OFF does not try")
set(WAGMA_CUDA_ARCHITECTURES "" CACHE STRING "Compute capabilities, e.g. '90' or '80;90'; empty: of common data-centre GPUs those that nvcc knows")
set(WAGMA_NVCC "" CACHE STRING "nvcc; empty: on PATH, in CUDA_HOME, CUDA_PATH, /usr/local/cuda*")
set(WAGMA_CUDA_LIMIT_S 1800 CACHE STRING "Seconds after which a run of nvcc is given up")
get_filename_component(wagma_cuda_source "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
get_filename_component(wagma_cuda_program "${wagma_cuda_source}/../tools/cuda_build.py" ABSOLUTE)
get_filename_component(wagma_nvcc_options "${wagma_cuda_source}/../tools/nvcc.py" ABSOLUTE)  # which it imports

# Sets nvcc, codes, runtime and why_not in the caller's scope.
function(wagma_probe_cuda)
  set(mode "${WAGMA_CUDA}")
  if(mode STREQUAL "")
    set(mode AUTO)
  endif()
  # A space in front keeps a message in one line.
  if(NOT mode MATCHES "^(AUTO|OFF|ON)$")
    message(FATAL_ERROR " WAGMA_CUDA = ${WAGMA_CUDA}: must be AUTO, OFF or ON")
  endif()
  file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/cuda")
  if(mode STREQUAL "OFF")
    set(found [[{"nvcc": "", "release": "", "codes": "", "runtime": "", "why_not": "switched off (WAGMA_CUDA = OFF)"}]])
  else()
    message(STATUS "wagma: looking for nvcc")
    execute_process(COMMAND "${Python_EXECUTABLE}" "${wagma_cuda_program}" probe "--nvcc=${WAGMA_NVCC}" "--compiler=${CMAKE_CXX_COMPILER}"
                            "--architectures=${WAGMA_CUDA_ARCHITECTURES}" "--limit=${WAGMA_CUDA_LIMIT_S}"
                            "--folder=${CMAKE_CURRENT_BINARY_DIR}/cuda"
                    OUTPUT_VARIABLE found RESULT_VARIABLE status COMMAND_ECHO NONE)
    if(NOT status EQUAL 0)
      message(FATAL_ERROR "wagma: tools/cuda_build.py has ended with ${status}")
    endif()
  endif()
  foreach(name IN ITEMS nvcc release codes runtime why_not)
    string(JSON ${name} GET "${found}" ${name})
    set(${name} "${${name}}" PARENT_SCOPE)
  endforeach()
  if(why_not STREQUAL "")
    message(STATUS "wagma: CUDA module with ${nvcc}, release ${release}, for ${codes}")
  elseif(mode STREQUAL "ON")
    message(FATAL_ERROR " WAGMA_CUDA = ON, but ${why_not}")
  else()
    message(STATUS "wagma: CUDA module without kernels: ${why_not}")
  endif()
endfunction()

# Links what nvcc makes, or what says why there is none, into a module.
function(wagma_add_cuda target)
  wagma_probe_cuda()
  set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda/wagma_cuda.o")
  set(command "${Python_EXECUTABLE}" "${wagma_cuda_program}" compile "--nvcc=${nvcc}" "--compiler=${CMAKE_CXX_COMPILER}" "--codes=${codes}"
              "--limit=${WAGMA_CUDA_LIMIT_S}" "--source=${wagma_cuda_source}" "--object=${object}" "--why-not=${why_not}")
  if(WAGMA_CUDA STREQUAL "ON")
    list(APPEND command --required)
  endif()
  # The object's own dependencies are in the file beside it; a new file in the folder is none of theirs yet. `release` is
  # there to be compared: another nvcc may have come to be under the same name.
  file(GLOB sources CONFIGURE_DEPENDS "${wagma_cuda_source}/device/*.cpp")
  add_custom_command(OUTPUT "${object}" COMMAND ${command} "--release=${release}"
                     DEPENDS ${sources} "${wagma_cuda_program}" "${wagma_nvcc_options}" "${wagma_cuda_source}/bindings/cuda_build.cpp"
                     DEPFILE "${CMAKE_CURRENT_BINARY_DIR}/cuda/wagma_cuda.d"
                     COMMENT "Compiling the part for CUDA" VERBATIM)
  set_source_files_properties("${object}" PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  target_sources(${target} PRIVATE "${object}")
  target_include_directories(${target} PRIVATE "${wagma_cuda_source}/include" "${wagma_cuda_source}/device")
  if(why_not STREQUAL "")
    # Hidden: PyTorch makes the symbols of its own CUDA runtime, of another release maybe, visible to all modules.
    target_link_libraries(${target} PRIVATE "${runtime}" dl rt)
    target_link_options(${target} PRIVATE "-Wl,--exclude-libs,libcudart_static.a")
  endif()
endfunction()
