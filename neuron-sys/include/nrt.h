/*
 * The part of the AWS Neuron runtime's C interface that this crate calls.
 *
 * Written by hand from facts of the binary interface (names, values, field order, argument types) so that the
 * project neither contains nor needs the vendor's headers. `scripts/bindings --include DIR` compares it with an
 * installed SDK.
 *
 * Of the several hundred functions only those with a use here are declared. Which of them a library must have is
 * said in src/sys/mod.rs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- codes ------------------------------------------------------------------------------------------------- */

/** What a call returns. Newer libraries may return values that are not listed. */
typedef enum {
    NRT_SUCCESS = 0,
    NRT_FAILURE = 1,
    NRT_INVALID = 2,
    NRT_INVALID_HANDLE = 3,
    NRT_RESOURCE = 4,
    NRT_TIMEOUT = 5,
    NRT_HW_ERROR = 6,
    NRT_QUEUE_FULL = 7,
    NRT_LOAD_NOT_ENOUGH_NC = 9,
    NRT_UNSUPPORTED_NEFF_VERSION = 10,
    NRT_FAIL_HOST_MEM_ALLOC = 11,
    NRT_UNINITIALIZED = 13,
    NRT_CLOSED = 14,
    NRT_QUEUE_EMPTY = 15,
    NRT_EXEC_UNIT_UNRECOVERABLE = 101,
    NRT_EXEC_BAD_INPUT = 1002,
    NRT_EXEC_COMPLETED_WITH_NUM_ERR = 1003,
    NRT_EXEC_COMPLETED_WITH_ERR = 1004,
    NRT_EXEC_NC_BUSY = 1005,
    NRT_EXEC_OOB = 1006,
    NRT_COLL_PENDING = 1100,
    NRT_EXEC_HW_ERR_COLLECTIVES = 1200,
    NRT_EXEC_HW_ERR_HBM_UE = 1201,
    NRT_EXEC_HW_ERR_NC_UE = 1202,
    NRT_EXEC_HW_ERR_DMA_ABORT = 1203,
    NRT_EXEC_SW_NQ_OVERFLOW = 1204,
    NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE = 1205,
    NRT_NETWORK_PROXY_FAILURE = 1206,
} NRT_STATUS;

/** Where a tensor's bytes are. Only `DEVICE` still works in every release. */
typedef enum {
    NRT_TENSOR_PLACEMENT_DEVICE = 0,
    NRT_TENSOR_PLACEMENT_HOST = 1,
    NRT_TENSOR_PLACEMENT_VIRTUAL = 2,
} nrt_tensor_placement_t;

/** Who is calling; informational. */
typedef enum {
    NRT_FRAMEWORK_TYPE_INVALID = 0,
    NRT_FRAMEWORK_TYPE_NO_FW = 1,
    NRT_FRAMEWORK_TYPE_TENSORFLOW = 2,
    NRT_FRAMEWORK_TYPE_PYTORCH = 3,
    NRT_FRAMEWORK_TYPE_MXNET = 4,
    NRT_FRAMEWORK_TYPE_PRECHECK = 5,
} nrt_framework_type_t;

/** Which side of a model a tensor is on. */
typedef enum {
    NRT_TENSOR_USAGE_INPUT = 0,
    NRT_TENSOR_USAGE_OUTPUT = 1,
} nrt_tensor_usage_t;

/** Element types. The values changed between releases and some types are reported as others: never rely on them. */
typedef enum {
    NRT_DTYPE_UNKNOWN = 0x0,
    NRT_DTYPE_UINT64 = 0x1,
    NRT_DTYPE_INT8 = 0x2,
    NRT_DTYPE_UINT8 = 0x3,
    NRT_DTYPE_INT16 = 0x4,
    NRT_DTYPE_UINT16 = 0x5,
    NRT_DTYPE_BFLOAT16 = 0x6,
    NRT_DTYPE_FLOAT16 = 0x7,
    NRT_DTYPE_INT32 = 0x8,
    NRT_DTYPE_UINT32 = 0x9,
    NRT_DTYPE_FLOAT32 = 0xA,
    NRT_DTYPE_FP32R = 0xB,
    NRT_DTYPE_INT64 = 0xC,
    NRT_DTYPE_FP8_E3 = 0xD,
    NRT_DTYPE_FP8_E4 = 0xE,
    NRT_DTYPE_FP8_E5 = 0xF,
} nrt_dtype_t;

/* ---- handles ----------------------------------------------------------------------------------------------- */

/** A loaded NEFF. */
typedef struct nrt_model nrt_model_t;
/** Memory of a device, or a part of such memory. */
typedef struct nrt_tensor nrt_tensor_t;
/** Tensors by name. */
typedef void nrt_tensor_set_t;

/* ---- structures -------------------------------------------------------------------------------------------- */

#define NRT_TENSOR_NAME_MAX 256

/** One input or output of a model. */
typedef struct nrt_tensor_info {
    /** Ends with a NUL. */
    char name[NRT_TENSOR_NAME_MAX];
    nrt_tensor_usage_t usage;
    /** Bytes. */
    size_t size;
    nrt_dtype_t dtype;
    uint32_t *shape;
    uint32_t ndim;
} nrt_tensor_info_t;

/** All inputs and outputs of a model. */
typedef struct nrt_tensor_info_array {
    uint64_t tensor_count;
    nrt_tensor_info_t tensor_array[];
} nrt_tensor_info_array_t;

/** The machine. Older libraries fill in only the first two fields, so the call takes the structure's size. */
typedef struct nrt_instance_info {
    uint32_t family;
    uint32_t size;
    char arch_name[16];
    char device_revision[8];
} nrt_instance_info_t;

/** The library's own version. */
typedef struct nrt_version {
    uint64_t rt_major;
    uint64_t rt_minor;
    uint64_t rt_patch;
    uint64_t rt_maintenance;
    char rt_detail[128];
    char git_hash[64];
} nrt_version_t;

/** A core's memory, in bytes. Fields may be appended by newer libraries. */
typedef struct nrt_vnc_memory_stats {
    size_t bytes_used;
    size_t bytes_limit;
} nrt_vnc_memory_stats_t;

/** One range of a tensor and the host memory it is copied from or to. */
typedef struct nrt_tensor_batch_op {
    uint64_t offset;
    uint64_t size;
    void *buffer;
} nrt_tensor_batch_op_t;

/** The ranges of one tensor in a batched copy. */
typedef struct nrt_tensor_batch {
    const nrt_tensor_t *tensor;
    const nrt_tensor_batch_op_t *ops;
    uint32_t num_ops;
} nrt_tensor_batch_t;

/* ---- the library and the machine --------------------------------------------------------------------------- */

/** The English name of a status. */
const char *nrt_get_status_as_str(NRT_STATUS status);
/** Legal before `nrt_init`. */
NRT_STATUS nrt_get_version(nrt_version_t *ver, size_t size);
/** What machine this is. */
NRT_STATUS nrt_get_instance_info(nrt_instance_info_t *info, size_t instance_info_len);
/** Cores of this machine. Legal before `nrt_init`. */
NRT_STATUS nrt_get_total_nc_count(uint32_t *vnc_count);
/** Cores of this machine, under its newer name. Legal before `nrt_init`. */
NRT_STATUS nrt_get_total_vnc_count(uint32_t *vnc_count);
/** Cores this process may use. Legal before `nrt_init`. */
NRT_STATUS nrt_get_visible_nc_count(uint32_t *vnc_count);
/** Cores this process may use, under its newer name. Legal before `nrt_init`. */
NRT_STATUS nrt_get_visible_vnc_count(uint32_t *vnc_count);
/** Device memory used and available on a core. */
NRT_STATUS nrt_get_vnc_memory_stats(uint32_t vnc, nrt_vnc_memory_stats_t *stats, size_t stats_size_in,
                                    size_t *stats_size_out);

/* ---- life -------------------------------------------------------------------------------------------------- */

/** Claims the visible cores for this process alone. */
NRT_STATUS nrt_init(nrt_framework_type_t framework, const char *fw_version, const char *fal_version);
/** Gives the cores back; everything must be freed before. */
void nrt_close();

/* ---- models ------------------------------------------------------------------------------------------------ */

/** `vnc` counts from the first visible core; `vnc_count` is -1. */
NRT_STATUS nrt_load(const void *neff_bytes, size_t size, int32_t vnc, int32_t vnc_count, nrt_model_t **model);
/** As `nrt_load`, for a NEFF with collectives: returns when all `ctx_device_count` ranks have called it. */
NRT_STATUS nrt_load_collectives(const void *neff_bytes, size_t size, int32_t vnc, int32_t vnc_count,
                                uint32_t ctx_device_id, uint32_t ctx_device_count, nrt_model_t **model);
/** Joins a communicator larger than that of the NEFFs loaded later. */
NRT_STATUS nrt_build_global_comm(int32_t vnc, uint32_t g_device_id, uint32_t g_device_count);
/** Once for each model. */
NRT_STATUS nrt_unload(nrt_model_t *model);
/** Inputs and outputs; freed by `nrt_free_model_tensor_info`. */
NRT_STATUS nrt_get_model_tensor_info(nrt_model_t *model, nrt_tensor_info_array_t **tensor_info);
NRT_STATUS nrt_free_model_tensor_info(nrt_tensor_info_array_t *tensor_info);
/** How many threads may usefully execute the model at once. */
NRT_STATUS nrt_get_model_instance_count(nrt_model_t *model, uint32_t *instance_count);
/** Runs the model and waits. A tensor in both sets is updated in place. */
NRT_STATUS nrt_execute(nrt_model_t *model, const nrt_tensor_set_t *input_set, nrt_tensor_set_t *output_set);

/* ---- tensors ----------------------------------------------------------------------------------------------- */

/** `name` is for logs only. */
NRT_STATUS nrt_tensor_allocate(nrt_tensor_placement_t tensor_placement, int vnc, size_t size, const char *name,
                               nrt_tensor_t **tensor);
/** A part of another tensor: same memory. */
NRT_STATUS nrt_tensor_allocate_slice(const nrt_tensor_t *tensor_source, size_t offset, size_t size,
                                     const char *name, nrt_tensor_t **tensor_slice);
/** Also sets the pointer to null. */
void nrt_tensor_free(nrt_tensor_t **tensor);
NRT_STATUS nrt_tensor_read(const nrt_tensor_t *tensor, void *buf, size_t offset, size_t size);
NRT_STATUS nrt_tensor_write(nrt_tensor_t *tensor, const void *buf, size_t offset, size_t size);
/** Sets bytes to a value. */
NRT_STATUS nrt_tensor_memset(nrt_tensor_t *tensor, uint64_t offset, int value, size_t size);
/** Many reads in one call. */
NRT_STATUS nrt_tensor_read_batch(const nrt_tensor_batch_t *batches, uint64_t num_batches, bool unsafe);
/** Many writes in one call. */
NRT_STATUS nrt_tensor_write_batch(const nrt_tensor_batch_t *batches, uint64_t num_batches, bool unsafe);

/* ---- tensor sets ------------------------------------------------------------------------------------------- */

NRT_STATUS nrt_allocate_tensor_set(nrt_tensor_set_t **result);
/** Also sets the pointer to null; the tensors stay. */
void nrt_destroy_tensor_set(nrt_tensor_set_t **tensor_set);
/** Adds or replaces. The tensor must live until the set is destroyed. */
NRT_STATUS nrt_add_tensor_to_tensor_set(nrt_tensor_set_t *tensor_set, const char *tensor_name,
                                        nrt_tensor_t *tensor);
