"""The compatibility driver of kafka-python."""

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions, NewTopic

import driver


class KafkaPython(driver.Client):
    def produce(self):
        codec = None if self.job.codec == "none" else self.job.codec
        producer = KafkaProducer(
            bootstrap_servers=self.job.bootstrap,
            compression_type=codec,
            enable_idempotence=self.job.idempotent,
            acks="all",
            linger_ms=20,
        )
        sent = [producer.send(self.job.topic, key=key, value=value) for key, value in driver.records()]
        for each in sent:
            each.get(timeout=driver.LIMIT_SECONDS)
        producer.close()

    def consumer(self):
        return KafkaConsumer(
            bootstrap_servers=self.job.bootstrap,
            group_id=self.job.group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=self.job.session,
            heartbeat_interval_ms=500,
        )

    def subscribe(self, consumer, **listener):
        """Subscribes, and waits until the topic is known. A member that hears of its topic only after it joined joins
        once more, and kafka-python forgets that assignment for good where a poll's time ends while it is on its way."""
        consumer.subscribe([self.job.topic], **listener)
        self.eventually("find the topic", lambda: consumer.partitions_for_topic(self.job.topic))

    def poll(self, consumer):
        seen = 0
        while seen < self.job.max:
            self.in_time(f"saw {seen} of {self.job.max} records")
            for batch in consumer.poll(timeout_ms=200, max_records=self.job.max - seen).values():
                for record in batch:
                    self.show(record.partition, record.offset, record.key, record.value)
                    seen += 1

    def consume(self):
        consumer = self.consumer()
        consumer.assign([TopicPartition(topic, 0) for topic in self.job.topics])
        consumer.seek_to_beginning()
        self.poll(consumer)
        consumer.close()

    def resume(self):
        consumer = self.consumer()
        self.subscribe(consumer)
        self.poll(consumer)
        consumer.commit()
        consumer.close()

    def member(self):
        client = self

        class Listener(ConsumerRebalanceListener):
            def on_partitions_assigned(self, assigned):
                client.show_assigned([p.partition for p in consumer.assignment()])

            def on_partitions_revoked(self, revoked):
                client.show_assigned([])

        consumer = self.consumer()
        self.subscribe(consumer, listener=Listener())
        ended = driver.end_of_input()
        while not ended.is_set():
            for batch in consumer.poll(timeout_ms=100).values():
                for record in batch:
                    self.show(record.partition, record.offset, record.key, record.value)
                consumer.commit()
        consumer.close()

    def seek(self):
        consumer = self.consumer()
        partition = TopicPartition(self.job.topic, 0)
        consumer.assign([partition])
        consumer.seek(partition, consumer.offsets_for_times({partition: self.job.timestamp})[partition].offset)
        self.poll(consumer)
        consumer.close()

    def admin(self):
        self.administrator = KafkaAdminClient(bootstrap_servers=self.job.bootstrap)
        super().admin()
        self.administrator.close()

    def create(self, partitions, configs):
        topic = NewTopic(self.job.topic, num_partitions=partitions, replication_factor=1, topic_configs=configs)
        self.administrator.create_topics([topic])

    def partitions(self):
        if self.job.topic not in self.administrator.list_topics():
            return 0
        return len(self.administrator.describe_topics([self.job.topic])[0]["partitions"])

    def config(self, name):
        resource = ConfigResource(ConfigResourceType.TOPIC, self.job.topic)
        configs = self.administrator.describe_configs([resource])["topic"][self.job.topic]
        return configs[name]["value"] if name in configs else None

    def alter(self, configs):
        self.administrator.alter_configs([ConfigResource(ConfigResourceType.TOPIC, self.job.topic, configs=configs)])

    def add_partitions(self, total):
        self.administrator.create_partitions({self.job.topic: NewPartitions(total)})

    def delete(self):
        self.administrator.delete_topics([self.job.topic])


driver.main(KafkaPython)
