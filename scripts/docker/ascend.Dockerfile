# Latte on Ascend NPUs. Built in the repository's root, on an image that has CANN and Python 3.10 to 3.12:
#     docker build -f scripts/docker/ascend.Dockerfile -t latte-ascend --build-arg BASE=IMAGE_WITH_CANN .
#     docker run --rm --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc \
#         -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v "$PWD/outputs:/latte/outputs" latte-ascend doctor
# Nobody has built or run it: docs/ascend.md says what was run, and which MindSpore fits your CANN.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}

WORKDIR /latte
COPY . .
ARG MINDSPORE=2.10.0
# Version 2.7.0 of MindSpore is for CANN 8.2. The last line installs what CANN's own guide asks for.
RUN sed "s/^mindspore==.*/mindspore==${MINDSPORE}/" requirements.txt > requirements-here.txt \
    && pip install --no-cache-dir -r requirements-here.txt \
    && pip install --no-cache-dir -r requirements-ascend.txt

ENTRYPOINT ["bash", "scripts/docker/ascend_entry.sh"]
CMD ["--help"]
