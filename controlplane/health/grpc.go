package health

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/weir-mesh/weir/policy"
)

// probeGRPC asks grpc.health.v1.Health for the server as a whole. A server that
// does not implement it has answered, which is as much as a TCP connect shows.
func (c *Checker) probeGRPC(ctx context.Context, t *policy.Target) (string, error) {
	conn, err := c.connect(ctx, t)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	dial := once(conn)
	cc, err := grpc.NewClient("passthrough:///"+t.Addr().String(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the connection is secure already where it is meshed
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) }),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithUserAgent(userAgent),
		grpc.WithMaxHeaderListSize(maxHeaders), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxBody)))
	if err != nil {
		return "", &stepError{"gRPC", err}
	}
	defer cc.Close()
	resp, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
	switch {
	case status.Code(err) == codes.Unimplemented:
		return "connected; the app offers no gRPC health service", nil
	case err != nil:
		return "", &stepError{"gRPC health", errors.New(status.Code(err).String() + ": " + status.Convert(err).Message())}
	case resp.GetStatus() != healthpb.HealthCheckResponse_SERVING:
		return "", &stepError{"gRPC health", errors.New(resp.GetStatus().String())}
	}
	return resp.GetStatus().String(), nil
}
