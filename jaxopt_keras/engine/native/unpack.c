// Copies arrays out of a packed buffer. The attribute holds the start and the length of each, in bytes.
#include <stdint.h>
#include <string.h>
#include "ffi.h"

XLA_FFI_Error* handler(XLA_FFI_CallFrame* f) {
  if (asks_for_version(f)) return 0;
  const XLA_FFI_Array* places = f->attrs.size == 1 ? f->attrs.attrs[0] : 0;
  if (!places || f->args.size != 1 || (int64_t)places->size != 2 * f->rets.size)
    return failure(f, "jaxopt_keras: the arrays do not fit their call");
  const char* whole = ((XLA_FFI_Buffer*)f->args.args[0])->data;
  const int64_t* at = places->data;
  for (int64_t i = 0; i < f->rets.size; i++, at += 2)
    if (at[1]) memcpy(((XLA_FFI_Buffer*)f->rets.rets[i])->data, whole + at[0], at[1]);  // the pointer of an empty array may be null
  return 0;
}
