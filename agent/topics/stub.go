package topics

import (
	"context"

	"github.com/twmb/franz-go/pkg/kmsg"
)

type setting struct{}

func (t *Topics) brokerSettings() map[string]setting { return nil }

func (t *Topics) CreateTopics(ctx context.Context, req *kmsg.CreateTopicsRequest) *kmsg.CreateTopicsResponse {
	return req.ResponseKind().(*kmsg.CreateTopicsResponse)
}

func (t *Topics) DeleteTopics(ctx context.Context, req *kmsg.DeleteTopicsRequest) *kmsg.DeleteTopicsResponse {
	return req.ResponseKind().(*kmsg.DeleteTopicsResponse)
}

func (t *Topics) CreatePartitions(ctx context.Context, req *kmsg.CreatePartitionsRequest) *kmsg.CreatePartitionsResponse {
	return req.ResponseKind().(*kmsg.CreatePartitionsResponse)
}

func (t *Topics) DescribeConfigs(ctx context.Context, req *kmsg.DescribeConfigsRequest) *kmsg.DescribeConfigsResponse {
	return req.ResponseKind().(*kmsg.DescribeConfigsResponse)
}

func (t *Topics) AlterConfigs(ctx context.Context, req *kmsg.AlterConfigsRequest) *kmsg.AlterConfigsResponse {
	return req.ResponseKind().(*kmsg.AlterConfigsResponse)
}

func (t *Topics) IncrementalAlterConfigs(ctx context.Context, req *kmsg.IncrementalAlterConfigsRequest) *kmsg.IncrementalAlterConfigsResponse {
	return req.ResponseKind().(*kmsg.IncrementalAlterConfigsResponse)
}

func (t *Topics) AutoCreate(ctx context.Context, name string) error { return nil }
