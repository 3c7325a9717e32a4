// What every function that XLA calls needs: the answer to which version of the interface it is for, and errors.
// The type of an extension has not the same name in every line of JAX, hence __typeof__.
#include "xla/ffi/api/c_api.h"

static int asks_for_version(const XLA_FFI_CallFrame* f) {
  for (__typeof__(f->extension_start->next) e = f->extension_start; e; e = e->next)
    if (e->type == XLA_FFI_Extension_Metadata) {
      XLA_FFI_Metadata* m = ((XLA_FFI_Metadata_Extension*)e)->metadata;
      m->api_version.major_version = XLA_FFI_API_MAJOR;
      m->api_version.minor_version = XLA_FFI_API_MINOR;
      return 1;
    }
  return 0;
}

static XLA_FFI_Error* failure(const XLA_FFI_CallFrame* f, const char* why) {
  XLA_FFI_Error_Create_Args a = {.struct_size = sizeof a, .message = why, .errc = XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return f->api->XLA_FFI_Error_Create(&a);
}
