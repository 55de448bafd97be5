// NVRTC has the functions of <math.h> of its own accord, and not its constants.
#pragma once

#define INFINITY __int_as_float(0x7F800000)
