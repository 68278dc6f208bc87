package ca

import (
	"context"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Register offers the authority on a gRPC server as Consul's ConnectCAService.
func (c *CA) Register(s *grpc.Server) {
	pbconnectca.RegisterConnectCAServiceServer(s, &service{ca: c})
}

type service struct {
	pbconnectca.UnimplementedConnectCAServiceServer
	ca *CA
}

// Sign answers InvalidArgument for a request that breaks the rules, PermissionDenied
// (or the status that Authorize chose) for an identity that the caller may not have.
func (s *service) Sign(ctx context.Context, in *pbconnectca.SignRequest) (*pbconnectca.SignResponse, error) {
	req, err := CheckCSR([]byte(in.GetCsr()), s.ca.trustDomain, s.ca.opts.Datacenter)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if s.ca.opts.Authorize == nil {
		return nil, status.Errorf(codes.PermissionDenied, "leaf for %q: this server signs for nobody", req.ID)
	}
	through, err := s.ca.opts.Authorize(ctx, req.ID)
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		return nil, status.Errorf(codes.PermissionDenied, "leaf for %q: %v", req.ID, err)
	}
	leaf, err := s.ca.provider.sign(ctx, []byte(in.GetCsr()), req, through, s.ca.opts.Now())
	if err != nil {
		if _, ok := status.FromError(err); ok {
			return nil, err
		}
		s.ca.opts.Log.Error("cannot sign a leaf", "identity", req.ID.URI(), "error", err)
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	s.ca.opts.Log.Debug("signed a leaf", "identity", req.ID.URI())
	return &pbconnectca.SignResponse{CertPem: string(leaf)}, nil
}

// WatchRoots sends the roots now and after each change, until the caller or
// [CA.Close] ends it.
func (s *service) WatchRoots(_ *pbconnectca.WatchRootsRequest, stream pbconnectca.ConnectCAService_WatchRootsServer) error {
	for {
		roots, changed := s.ca.Watch()
		if err := stream.Send(toProto(roots)); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-s.ca.closed:
			return status.Error(codes.Unavailable, "the server is stopping")
		}
	}
}

func toProto(r Roots) *pbconnectca.WatchRootsResponse {
	out := &pbconnectca.WatchRootsResponse{ActiveRootId: r.ActiveRootID, TrustDomain: r.TrustDomain}
	for _, root := range r.Roots {
		out.Roots = append(out.Roots, &pbconnectca.CARoot{
			Id:                root.ID,
			Name:              root.Name,
			SerialNumber:      root.SerialNumber,
			SigningKeyId:      root.SigningKeyID,
			RootCert:          root.RootCert,
			IntermediateCerts: root.IntermediateCerts,
			Active:            root.Active,
		})
	}
	return out
}
