package api

import (
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varve-io/varve/protocol"
	"github.com/varve-io/varve/protocol/wire"
)

// apiVersions serves ApiVersions, versions 0 to 4.
func (b *Broker) apiVersions(req *kmsg.ApiVersionsRequest) *kmsg.ApiVersionsResponse {
	resp := kmsg.NewPtrApiVersionsResponse()
	resp.Version = req.Version
	if req.Version >= 3 && (!validSoftware(req.ClientSoftwareName) || !validSoftware(req.ClientSoftwareVersion)) {
		resp.ErrorCode = int16(protocol.InvalidRequest)
		return resp
	}
	resp.ApiKeys = wire.APIVersionsKeys()
	if req.Version >= 3 {
		supported := kmsg.NewApiVersionsResponseSupportedFeature()
		supported.Name, supported.MinVersion, supported.MaxVersion = transactionFeature, 0, transactionVersion
		finalized := kmsg.NewApiVersionsResponseFinalizedFeature()
		finalized.Name, finalized.MinVersionLevel, finalized.MaxVersionLevel = transactionFeature, transactionVersion, transactionVersion
		resp.SupportedFeatures, resp.FinalizedFeatures = append(resp.SupportedFeatures, supported), append(resp.FinalizedFeatures, finalized)
		resp.FinalizedFeaturesEpoch = 0
	}
	return resp
}

// The feature by which clients know that a producer's epoch is raised with each transaction, and that partitions are added to it by writing to them (KIP-890).
const (
	transactionFeature = "transaction.version"
	transactionVersion = 2
)

// validSoftware applies KIP-511's rule for names and versions of clients.
func validSoftware(s string) bool {
	for i := range len(s) {
		c := s[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || i == len(s)-1 || c != '.' && c != '-') {
			return false
		}
	}
	return s != ""
}
