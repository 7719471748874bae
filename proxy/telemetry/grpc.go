package telemetry

// grpcCodes are the names of gRPC's status codes, by number, as in its documentation; then what stands for numbers that are no code, and for no status.
var grpcCodes = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED",
	"FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED", other, "none",
}

const (
	grpcOther = 17
	grpcNone  = 18
)

func grpcPlace(code int) int {
	switch {
	case code < 0:
		return grpcNone
	case code >= grpcOther:
		return grpcOther
	}
	return code
}

// GRPCName is the name of a gRPC status code, as metrics and the access log have it.
func GRPCName(code int) string { return grpcCodes[grpcPlace(code)] }
