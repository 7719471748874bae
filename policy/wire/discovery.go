package wire

import (
	"context"

	"google.golang.org/grpc"
)

// DiscoveryStream is a stream of the discovery service, seen by a proxy.
type DiscoveryStream = grpc.BidiStreamingClient[DeltaDiscoveryRequest, DeltaDiscoveryResponse]

// discoveryMethod is that of Envoy's aggregated discovery service, incremental.
const discoveryMethod = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"

// Discover opens the discovery stream.
func Discover(ctx context.Context, conn grpc.ClientConnInterface) (DiscoveryStream, error) {
	desc := &grpc.StreamDesc{StreamName: "DeltaAggregatedResources", ServerStreams: true, ClientStreams: true}
	stream, err := conn.NewStream(ctx, desc, discoveryMethod, grpc.StaticMethod())
	if err != nil {
		return nil, err
	}
	return &grpc.GenericClientStream[DeltaDiscoveryRequest, DeltaDiscoveryResponse]{ClientStream: stream}, nil
}
