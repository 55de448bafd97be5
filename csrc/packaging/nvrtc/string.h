// NVRTC has memcpy of its own accord.
#pragma once
