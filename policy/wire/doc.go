// Package wire holds the protobuf messages between control plane and proxy and
// their conversion to and from policy's values. It moves no bytes itself.
package wire

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative weir.proto discovery.proto
